"""The images: scikit-learn's digits, CIFAR-10 and CIFAR-100 from files, or made-up ones for dry runs."""

import hashlib
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from options import Problem

SPLIT_SEED = 0  # not the seed of the run: every run is measured on the same held-out images
PAGE = 'https://www.cs.toronto.edu/~kriz/cifar.html'
PIXELS = 3 * 32 * 32


class Images(NamedTuple):
    """Images (n, height, width, 3) of uint8, and the numbers of their classes (n,) as int32."""

    x: np.ndarray
    y: np.ndarray


class Dataset(NamedTuple):
    """Images to learn from, held-out ones, the names of the classes, and whether a mirrored image keeps its class."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    flips: bool


class DataError(Problem):
    """What is wrong with the files or the folder, in one sentence."""


def load(name: str, folder: str | Path | None = None, limit: int | None = None) -> Dataset:
    """The dataset of a name.

    Parameters
    ----------
    name : 'digits', 'cifar10', 'cifar100' or 'synthetic'
        The synthetic images look like CIFAR-10 to the model.
    folder : path, optional
        Where the files of CIFAR are, or the folder above; the binary version is taken where both are there.
    limit : int, optional
        Use this many images only, for a quick look: the first ones, of which as large a share is held out as of all.

    Raises
    ------
    DataError
        If a file is missing, cut short, changed where that can be told, or another one than its name says.
    """
    if name == 'digits':
        return digits(limit)
    if name == 'synthetic':
        return synthetic(2000 if limit is None else limit)
    if name not in CIFAR:
        raise DataError(f'dataset must be digits, synthetic, {" or ".join(CIFAR)}, got {name!r}')
    train, test, classes, flips = cifar(name, folder)
    there = len(train.y) + len(test.y)
    if limit is None:
        limit = there
    if limit > there:
        raise DataError(f'--limit must be at most {there}, the number of images of {name}, got {limit}')
    held_out = math.ceil(limit * len(test.y) / there)
    kept = limit - held_out
    return Dataset(Images(train.x[:kept], train.y[:kept]), Images(test.x[:held_out], test.y[:held_out]), classes, flips)


def digits(limit: int | None = None) -> Dataset:
    """Scikit-learn's 1797 handwritten digits, 8x8 pixels, resized to 32x32x3: a fifth held out, all digits alike."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    x = np.stack([_resized(image) for image in bunch.images[:limit].astype(np.float32) * (255 / 16)])
    x = np.repeat(x.round().astype(np.uint8)[..., None], 3, axis=-1)
    y = bunch.target[:limit].astype(np.int32)
    train, test = train_test_split(np.arange(len(y)), test_size=0.2, random_state=SPLIT_SEED, stratify=y)
    names = tuple(str(name) for name in bunch.target_names)
    return Dataset(Images(x[train], y[train]), Images(x[test], y[test]), names, flips=False)


def _resized(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))


def synthetic(images: int, size: int = 32, classes: int = 10) -> Dataset:
    """Made-up images that can be learned: each class a smooth pattern of its own, moved about, mirrored, under noise.

    A fifth is held out. The same numbers give the same images.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    coarse = rng.integers(64, 192, (classes, -(-size // 8), -(-size // 8), 3), np.uint8)
    patterns = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
    y = rng.permutation(np.arange(images) % classes).astype(np.int32)
    x = rng.integers(0, 64, (images, size, size, 3), np.uint8)
    moves = rng.integers(-2, 3, (images, 2))
    mirrored = rng.random(images) < 0.5
    for image, label, move, mirror in zip(x, y, moves, mirrored, strict=True):
        pattern = np.roll(patterns[label], move, axis=(0, 1))
        image += pattern[:, ::-1] if mirror else pattern
    train = images - math.ceil(images / 5)
    names = tuple(f'pattern {c}' for c in range(classes))
    return Dataset(Images(x[:train], y[:train]), Images(x[train:], y[train:]), names, flips=True)


class File(NamedTuple):
    """A file of CIFAR: its name, how many images it holds, and its published md5 sum where there is one."""

    name: str
    images: int
    md5: str | None = None


class Form(NamedTuple):
    """A published form of a dataset: what its archive unpacks to, and how its files are read.

    `labels` are the kinds of labels of an image, each with its number of classes; the last is the one to learn.
    """

    archive: str
    folder: str
    train: tuple[File, ...]
    test: tuple[File, ...]
    names: File
    labels: dict[str, int]
    read: Callable[[Path, File, dict[str, int]], Images]
    read_names: Callable[[Path, File], tuple[str, ...]]


def cifar(name: str, folder: str | Path | None) -> Dataset:
    """CIFAR-10 or CIFAR-100, binary or Python version, whichever is in the folder."""
    form, place = _found(name, folder)
    for file in (*form.train, *form.test, form.names):
        if not (place / file.name).is_file():
            raise DataError(f"'{place}' has no file {file.name}, which belongs to {form.folder}; unpack {form.archive} "
                            f'from {PAGE} again')  # fmt: skip
    names = form.read_names(place, form.names)
    kind, classes = list(form.labels.items())[-1]
    if len(names) != classes:
        raise DataError(f"'{place / form.names.name}' names {len(names)} classes, where {classes} were expected")
    parts = []
    for files in form.train, form.test:
        read = [form.read(place, file, form.labels) for file in files]
        images = Images(np.concatenate([i.x for i in read]), np.concatenate([i.y for i in read]))
        # a label that was changed to another valid one, or a file in the place of another, shows only here
        counts = np.bincount(images.y, minlength=classes)
        if counts.min() != counts.max():
            odd = int(np.abs(counts - len(images.y) / classes).argmax())
            listed = ', '.join(file.name for file in files)
            raise DataError(f"'{place}': class {odd} of the {kind} comes {counts[odd]} times in {listed}, where "
                            f'{len(images.y) // classes} was expected; unpack {form.archive} again')  # fmt: skip
        parts.append(images)
    train, test = parts
    return Dataset(train, test, names, flips=True)


def _found(name: str, folder: str | Path | None) -> tuple[Form, Path]:
    """The form that is in the folder or one level below, and where its files are."""
    hint = f'download {CIFAR[name][0].archive} from {PAGE}, unpack it, and pass its folder'
    if folder is None:
        raise DataError(f'{name} is read from files, got no --data-dir; {hint}')
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"--data-dir must be a folder that exists, got '{folder}'; {hint}")
    for form in CIFAR[name]:
        for place in folder / form.folder, folder:
            if any((place / file.name).is_file() for file in (*form.train, *form.test)):
                return form, place
        if (folder / form.archive).is_file():
            raise DataError(f"--data-dir '{folder}' holds {form.archive} but not what is in it; unpack it there with: "
                            f'tar xzf {form.archive}')  # fmt: skip
    for other, forms in CIFAR.items():
        if any((place / f.train[0].name).is_file() for f in forms for place in (folder / f.folder, folder)):
            raise DataError(f"--data-dir '{folder}' holds {other}, not {name}; pass --dataset {other}, or {hint}")
    raise DataError(f"--data-dir '{folder}' holds no files of {name}; {hint}")


def _bytes(place: Path, file: File) -> bytes:
    """What is in a file, once its md5 sum is the published one."""
    try:
        content = (place / file.name).read_bytes()
    except OSError as error:
        raise DataError(f"can not read '{place / file.name}': {error.strerror or error}") from None
    if file.md5 is not None:
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if md5 != file.md5:
            raise DataError(f"'{place / file.name}' ({len(content)} bytes) has the md5 sum {md5}, where {file.md5} was "
                            'expected: it is cut short, changed or another file; unpack it again')  # fmt: skip
    return content


def _images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    """Pixels as they are stored, (n, channel x row x column), as images."""
    x = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Images(np.ascontiguousarray(x), labels.astype(np.int32))


def _check_range(path: Path, labels: np.ndarray, kind: str, classes: int, where: Callable[[int], str]) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(f"'{path}': {where(int(wrong[0]))}, of the {kind} of image {wrong[0]}, is "
                        f'{labels[wrong[0]]}, where 0 to {classes - 1} was expected')  # fmt: skip


def read_binary(place: Path, file: File, labels: dict[str, int]) -> Images:
    """A file of the binary version: for each image its labels, a byte each, and its 3072 pixels."""
    path, content = place / file.name, _bytes(place, file)
    record = len(labels) + PIXELS
    if len(content) != file.images * record:
        end = f'ends in image {len(content) // record}' if len(content) < file.images * record else 'goes on'
        raise DataError(f"'{path}' has {len(content)} bytes, where {file.images * record} were expected ({file.images} "
                        f'images of {record} bytes): it {end} at byte {min(len(content), file.images * record)}; '
                        'unpack it again')  # fmt: skip
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    for column, (kind, classes) in enumerate(labels.items()):
        _check_range(path, records[:, column], kind, classes, lambda i, at=column: f'byte {i * record + at}')
    return _images(records[:, len(labels) :], records[:, len(labels) - 1])


def read_text_names(place: Path, file: File) -> tuple[str, ...]:
    """The names of the classes, a line each."""
    try:
        return tuple(_bytes(place, file).decode('ascii').split())
    except UnicodeDecodeError as error:
        raise DataError(f"'{place / file.name}': byte {error.start} is no ASCII, where names were expected") from None


class Unpickler(pickle.Unpickler):
    """Makes numpy arrays and plain containers, and calls nothing else: pickles can run any program."""

    allowed = frozenset({
        ('numpy', 'ndarray'),
        ('numpy', 'dtype'),
        ('numpy.core.multiarray', '_reconstruct'),
    })  # fmt: skip

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.allowed:
            raise pickle.UnpicklingError(f'it asks for {module_name}.{global_name}, which no file of CIFAR does')
        if global_name == '_reconstruct':
            module_name = 'numpy._core.multiarray'  # where numpy 2 has it
        return super().find_class(module_name, global_name)


def _unpickled(place: Path, file: File) -> dict[bytes, Any]:
    try:
        # the files are of Python 2, whose strings are bytes
        content = Unpickler(io.BytesIO(_bytes(place, file)), encoding='bytes').load()
        return dict(content)
    except DataError:
        raise
    except Exception as error:  # what a broken pickle raises is anything
        reason = ' '.join(str(error).split())
        raise DataError(f"'{place / file.name}' is no file of CIFAR: {reason}; unpack it again") from None


def read_python(place: Path, file: File, labels: dict[str, int]) -> Images:
    """A file of the Python version: a pickled dict of an array of pixels and lists of labels."""
    path, content = place / file.name, _unpickled(place, file)
    pixels, given = content.get(b'data'), {kind: np.asarray(content.get(kind.encode())) for kind in labels}
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (file.images, PIXELS):
        came = f'{pixels.dtype} {pixels.shape}' if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"'{path}': its 'data' is {came}, where uint8 {(file.images, PIXELS)} was expected")
    for kind, classes in labels.items():
        if given[kind].dtype.kind not in 'iu' or given[kind].shape != (file.images,):
            raise DataError(f"'{path}': its '{kind}' are {given[kind].dtype} {given[kind].shape}, where {file.images} "
                            'whole numbers were expected')  # fmt: skip
        _check_range(path, given[kind], kind, classes, lambda i, kind=kind: f"'{kind}'[{i}]")
    return _images(pixels, given[list(labels)[-1]])


def read_pickled_names(place: Path, file: File) -> tuple[str, ...]:
    """The names of the classes, from the pickled dict that comes with the Python version."""
    content = _unpickled(place, file)
    names = content.get(b'fine_label_names', content.get(b'label_names'))
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"'{place / file.name}' holds no list of names of classes")
    return tuple(name.decode('ascii', 'replace') for name in names)


# The md5 sums are those that torchvision checks (torchvision/datasets/cifar.py). For the files of the binary version
# none are published, only for its archives: there sizes, labels and how often each comes are checked, and a changed
# pixel is not noticed.
LABELS_10, LABELS_100 = {'labels': 10}, {'coarse_labels': 20, 'fine_labels': 100}
CIFAR = {
    'cifar10': (
        Form(
            archive='cifar-10-binary.tar.gz',
            folder='cifar-10-batches-bin',
            train=tuple(File(f'data_batch_{i}.bin', 10000) for i in range(1, 6)),
            test=(File('test_batch.bin', 10000),),
            names=File('batches.meta.txt', 0),
            labels=LABELS_10,
            read=read_binary,
            read_names=read_text_names,
        ),
        Form(
            archive='cifar-10-python.tar.gz',
            folder='cifar-10-batches-py',
            train=(
                File('data_batch_1', 10000, 'c99cafc152244af753f735de768cd75f'),
                File('data_batch_2', 10000, 'd4bba439e000b95fd0a9bffe97cbabec'),
                File('data_batch_3', 10000, '54ebc095f3ab1f0389bbae665268c751'),
                File('data_batch_4', 10000, '634d18415352ddfa80567beed471001a'),
                File('data_batch_5', 10000, '482c414d41f54cd18b22e5b47cb7c3cb'),
            ),
            test=(File('test_batch', 10000, '40351d587109b95175f43aff81a1287e'),),
            names=File('batches.meta', 0, '5ff9c542aee3614f3951f8cda6e48888'),
            labels=LABELS_10,
            read=read_python,
            read_names=read_pickled_names,
        ),
    ),
    'cifar100': (
        Form(
            archive='cifar-100-binary.tar.gz',
            folder='cifar-100-binary',
            train=(File('train.bin', 50000),),
            test=(File('test.bin', 10000),),
            names=File('fine_label_names.txt', 0),
            labels=LABELS_100,
            read=read_binary,
            read_names=read_text_names,
        ),
        Form(
            archive='cifar-100-python.tar.gz',
            folder='cifar-100-python',
            train=(File('train', 50000, '16019d7e3df5f24257cddd939b257f8d'),),
            test=(File('test', 10000, 'f0ef6b0ae62326f3e7ffdfab6717acfc'),),
            names=File('meta', 0, '7973b15100ade9c7d40fb424638fde48'),
            labels=LABELS_100,
            read=read_python,
            read_names=read_pickled_names,
        ),
    ),
}

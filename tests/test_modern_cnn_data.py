"""The images of the ModernCNN example: reading them, what is said of files that are wrong, batches, augmentation."""

import hashlib
import io
import json
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest


class Python2(pickle._Pickler):
    """Writes what Python 2 and its numpy would have, as the files of CIFAR are: all strings are bytes."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file):
        super().__init__(file, protocol=2, fix_imports=True)

    def save_string(self, value):
        text = value.encode('latin1') if isinstance(value, str) else value
        self.write((b'U' + bytes([len(text)]) if len(text) < 256 else b'T' + struct.pack('<i', len(text))) + text)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string

    def save_global(self, value, name=None):
        if getattr(value, '__name__', '') == '_reconstruct':
            self.write(b'cnumpy.core.multiarray\n_reconstruct\n')
        else:
            super().save_global(value, name)

    for kind in type(len), type(save_string), type:
        dispatch[kind] = save_global


def pickled(value) -> bytes:
    file = io.BytesIO()
    Python2(file).dump(value)
    return file.getvalue()


class Files:
    """A small CIFAR in a folder: true formats, fewer images."""

    def __init__(self, data, monkeypatch, folder: Path, name: str, version: int) -> None:
        self.data, self.name = data, name
        form = data.CIFAR[name][version]
        classes = list(form.labels.values())[-1]
        self.folder = folder / form.folder
        self.folder.mkdir(parents=True)
        rng = np.random.default_rng(1)
        self.wanted = {}
        files = {}
        for part in 'train', 'test':
            given = getattr(form, part)
            count = 2 * classes // len(given)
            labels = rng.permutation(np.arange(2 * classes) % classes).reshape(len(given), count)
            pixels = rng.integers(0, 256, (len(given), count, 3072), np.uint8)
            self.wanted[part] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.ravel()
            files[part] = []
            for file, y, x in zip(given, labels, pixels, strict=True):
                columns = {kind: y * n // classes for kind, n in form.labels.items()}
                if form.read is data.read_binary:
                    content = np.concatenate([*(np.uint8(c)[:, None] for c in columns.values()), x], axis=1).tobytes()
                else:
                    content = pickled({b'data': x, **{k.encode(): c.tolist() for k, c in columns.items()}})
                files[part].append(self.write(file._replace(images=count), content))
        self.classes = tuple(f'class_{i}' for i in range(classes))
        lines = '\n'.join((*self.classes, '')).encode()
        key = b'fine_label_names' if name == 'cifar100' else b'label_names'
        content = lines if form.read is data.read_binary else pickled({key: [c.encode() for c in self.classes]})
        names = self.write(form.names, content)
        self.form = form._replace(train=tuple(files['train']), test=tuple(files['test']), names=names)
        self.others = tuple(f for i, f in enumerate(data.CIFAR[name]) if i != version)
        self.patch = monkeypatch.setitem
        self.put()

    def put(self) -> None:
        self.patch(self.data.CIFAR, self.name, (self.form, *self.others))

    def write(self, file, content: bytes):
        (self.folder / file.name).write_bytes(content)
        return file._replace(md5=file.md5 and hashlib.md5(content).hexdigest())

    def trust(self, name: str, content: bytes) -> None:
        """Put another content in place of a file of training images, with the md5 sum that it has."""
        train = tuple(self.write(f, content) if f.name == name else f for f in self.form.train)
        self.form = self.form._replace(train=train)
        self.put()


FORMS = {
    'binary10': ('cifar10', 0),
    'python10': ('cifar10', 1),
    'binary100': ('cifar100', 0),
    'python100': ('cifar100', 1),
}


@pytest.fixture
def files(example, monkeypatch, tmp_path, request):
    return Files(example('data'), monkeypatch, tmp_path, *FORMS[request.param])


def every(*names: str):
    return pytest.mark.parametrize('files', names or FORMS, indirect=True)


def refused(data, *arguments, **words):
    with pytest.raises(data.DataError) as caught:
        data.load(*arguments)
    message = str(caught.value)
    assert '\n' not in message
    return message


@every()
def test_cifar_is_read_from_its_folder_and_from_the_one_above(files):
    for folder in files.folder, files.folder.parent:
        got = files.data.load(files.name, folder)
        for part in 'train', 'test':
            images = getattr(got, part)
            x, y = files.wanted[part]
            np.testing.assert_array_equal(images.x, x)
            np.testing.assert_array_equal(images.y, y)
            assert (images.x.dtype, images.y.dtype) == (np.uint8, np.int32)
            assert images.x.flags.c_contiguous
        assert got.classes == files.classes
        assert got.flips


@every('binary10')
def test_a_limit_takes_the_first_images(files):
    got = files.data.load('cifar10', files.folder, 11)  # of 20 + 20
    assert (len(got.train.y), len(got.test.y)) == (5, 6)
    np.testing.assert_array_equal(got.train.x, files.wanted['train'][0][:5])
    np.testing.assert_array_equal(got.test.y, files.wanted['test'][1][:6])
    assert 'at most 40' in refused(files.data, 'cifar10', files.folder, 41)


@every()
def test_a_truncated_file(files):
    path = files.folder / files.form.test[0].name
    content = path.read_bytes()
    for size in 0, 1, 3073, len(content) - 1:
        path.write_bytes(content[:size])
        message = refused(files.data, files.name, files.folder)
        assert str(path) in message
        assert f'{size} bytes' in message
        assert str(len(content)) in message or files.form.test[0].md5 in message
    path.write_bytes(content + b'\0')
    assert str(path) in refused(files.data, files.name, files.folder)


@every('binary10', 'binary100')
def test_a_label_out_of_range_is_named_with_its_byte(files):
    path = files.folder / files.form.train[-1].name
    content = bytearray(path.read_bytes())
    record = 3072 + len(files.form.labels)
    for column, classes in enumerate(files.form.labels.values()):
        flipped = content.copy()
        flipped[3 * record + column] = 255
        path.write_bytes(flipped)
        message = refused(files.data, files.name, files.folder)
        for word in str(path), f'byte {3 * record + column},', 'image 3', 'is 255', f'0 to {classes - 1}':
            assert word in message


@every('binary10', 'binary100')
def test_a_label_changed_to_another_class(files):
    path = files.folder / files.form.train[0].name
    content = bytearray(path.read_bytes())
    at = len(files.form.labels) - 1
    content[at] = (content[at] + 1) % 10
    path.write_bytes(content)
    message = refused(files.data, files.name, files.folder)
    for word in str(files.folder), files.form.train[0].name, 'where 2 was expected':
        assert word in message


@every('python10', 'python100')
def test_a_flipped_bit_changes_the_md5_sum(files):
    for file in files.form.train[0], files.form.test[0], files.form.names:
        path = files.folder / file.name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        message = refused(files.data, files.name, files.folder)
        for word in str(path), 'md5', file.md5:
            assert word in message
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


class Attack:
    def __reduce__(self):
        import os

        return os.system, ('echo attacked > attacked',)


@every('python10')
def test_a_pickle_that_calls_anything_is_refused_before_it_does(files, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name = files.form.train[0].name
    for content, forbidden in (
        (pickle.dumps(Attack()), 'posix.system'),
        (pickle.dumps({'data': Attack()}, 0), 'posix.system'),
        (b'cbuiltins\neval\n(S"1"\ntR.', 'builtins.eval'),
        (b'cnumpy\nload\n(S"x"\ntR.', 'numpy.load'),
        (b'cnumpy.core.multiarray\nfromfile\n.', 'numpy.core.multiarray.fromfile'),
        (b'cnumpy\nndarray.tofile\n.', 'numpy.ndarray.tofile'),
    ):
        files.trust(name, content)
        message = refused(files.data, files.name, files.folder)
        assert forbidden in message
        assert str(files.folder / name) in message
    assert not (tmp_path / 'attacked').exists()


@every('python10')
def test_a_pickle_of_something_else(files):
    labels = [0, 1, 2, 3]
    pixels = np.zeros((4, 3072), np.uint8)
    name = files.form.train[0].name
    for value, words in (
        ([1, 2], ('no file of CIFAR',)),
        ({b'labels': labels}, ("'data' is NoneType", '(4, 3072)')),
        ({b'data': pixels[:3], b'labels': labels}, ('(3, 3072)', '(4, 3072)')),
        ({b'data': pixels.astype(np.float32), b'labels': labels}, ('float32',)),
        ({b'data': pixels}, ("'labels'", '4 whole numbers')),
        ({b'data': pixels, b'labels': labels[:3]}, ("'labels'", '(3,)', '4 whole numbers')),
        ({b'data': pixels, b'labels': [0, 1, 2, 10]}, ("'labels'[3]", 'is 10', '0 to 9')),
        ({b'data': pixels, b'labels': [0, -1, 2, 3]}, ("'labels'[1]", 'is -1')),
    ):
        files.trust(name, pickled(value))
        message = refused(files.data, files.name, files.folder)
        for word in (name, *words):
            assert word in message
    for content in b'', b'\x80\x02', b'\x89PNG\r\n', b'\x80\x02]q\x00(K\x01':
        files.trust(name, content)
        assert name in refused(files.data, files.name, files.folder)


def test_folders_that_are_no_cifar_say_where_to_get_it(example, tmp_path):
    data = example('data')
    for name in data.CIFAR:
        archive = data.CIFAR[name][0].archive
        for folder, words in (
            (None, ('--data-dir',)),
            (tmp_path / 'none', ('--data-dir', 'none')),
            (tmp_path, ('holds no files',)),
        ):
            message = refused(data, name, folder)
            for word in (data.PAGE, archive, 'download', *words):
                assert word in message
    (tmp_path / 'cifar-10-binary.tar.gz').write_bytes(b'')
    assert 'tar xzf cifar-10-binary.tar.gz' in refused(data, 'cifar10', tmp_path)
    assert 'synthetic' in refused(data, 'imagenet')


@every('binary10')
def test_a_missing_file_and_the_other_dataset(files):
    message = refused(files.data, 'cifar100', files.folder)
    assert 'holds cifar10, not cifar100' in message
    (files.folder / 'batches.meta.txt').write_bytes(b'one\ntwo\n')
    assert 'names 2 classes, where 10' in refused(files.data, 'cifar10', files.folder)
    (files.folder / 'batches.meta.txt').write_bytes(b'\xff\n')
    assert 'byte 0' in refused(files.data, 'cifar10', files.folder)
    (files.folder / 'data_batch_4.bin').unlink()
    assert 'data_batch_4.bin' in refused(files.data, 'cifar10', files.folder)


def test_true_sizes_and_sums(example):
    for name, forms in example('data').CIFAR.items():
        for form in forms:
            assert sum(file.images for file in form.train) == 50000
            assert sum(file.images for file in form.test) == 10000
            given = [file.md5 for file in (*form.train, *form.test, form.names)]
            assert all(len(md5) == 32 for md5 in given) if 'python' in form.archive else given == [None] * len(given)
            assert list(form.labels.values())[-1] == int(name.removeprefix('cifar'))


def test_digits_are_split_as_ever_and_alike(example):
    data = example('data')
    train, test, classes, flips = data.load('digits')
    assert train.x.shape == (1437, 32, 32, 3)
    assert test.x.shape == (360, 32, 32, 3)
    assert (train.x.dtype, train.x.min(), train.x.max()) == (np.uint8, 0, 255)
    assert classes == tuple('0123456789')
    assert not flips
    np.testing.assert_allclose(np.bincount(test.y) / np.bincount(train.y), 0.25, atol=0.02)
    np.testing.assert_array_equal(data.load('digits')[1].y, test.y)
    few = data.load('digits', limit=200)
    assert (len(few.train.y), len(few.test.y)) == (160, 40)


def test_digits_are_resized_as_jax_does(example):
    import jax
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    kept, _ = train_test_split(np.arange(len(y)), test_size=0.2, random_state=0, stratify=y)
    wanted = jax.image.resize(x[kept[:20]].reshape(-1, 8, 8).astype(np.float32) * (255 / 16), (20, 32, 32), 'bilinear')
    got = example('data').load('digits').train.x[:20]
    np.testing.assert_allclose(got[..., 0], wanted, rtol=0, atol=0.501)
    np.testing.assert_array_equal(got[..., 0], got[..., 2])


@pytest.mark.parametrize(('images', 'size', 'classes'), [(2000, 32, 10), (50, 13, 3), (1, 8, 2)])
def test_synthetic_images_can_be_learned(example, images, size, classes):
    data = example('data')
    made = data.synthetic(images, size, classes)
    train, test = made.train, made.test
    assert train.x.shape[1:] == (size, size, 3)
    assert len(train.y) + len(test.y) == images
    assert len(made.classes) == classes
    np.testing.assert_array_equal(data.synthetic(images, size, classes).train.x, train.x)
    if images == 2000:
        np.testing.assert_array_equal(np.bincount(np.concatenate([train.y, test.y])), 200)
        # the nearest image of the training set has the same class
        a, b = (part.x[:400].reshape(-1, size * size * 3).astype(np.float32) for part in (train, test))
        distance = (a**2).sum(1) - 2 * b @ a.T
        assert np.mean(train.y[distance.argmin(1)] == test.y[:400]) > 0.9
        assert len(data.load('synthetic', limit=30).train.y) == 24


def numbered(example, count: int):
    return example('data').Images(
        np.arange(count, dtype=np.uint8)[:, None, None, None], np.arange(count, dtype=np.int32)
    )


def taken(feed, steps: int) -> list[list[int]]:
    return [next(feed).y.tolist() for _ in range(steps)]


def test_an_epoch_shows_every_image_once_and_none_is_left_out(example):
    feed = example('feed')
    images = numbered(example, 23)
    seen = taken(feed.training_feed(images, 5, seed=0), 23)  # five epochs
    assert {len(batch) for batch in seen} == {5}
    flat = [i for batch in seen for i in batch]
    epochs = [flat[23 * e : 23 * (e + 1)] for e in range(5)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert [feed.steps_until(e, 23, 5) for e in range(1, 6)] == [5, 10, 14, 19, 23]
    assert seen == taken(feed.training_feed(images, 5, seed=0), 23)
    assert seen != taken(feed.training_feed(images, 5, seed=1), 23)


def test_pictures_and_labels_stay_together(example):
    batch = next(example('feed').training_feed(numbered(example, 23), 8, seed=3))
    np.testing.assert_array_equal(batch.x.ravel(), batch.y)
    assert type(batch) is example('data').Images
    assert (batch.x.dtype, batch.y.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize('at', [0, 1, 4, 7, 100])
def test_the_position_is_saved_as_json_and_gone_on_from(example, at):
    feed, images = example('feed'), numbered(example, 23)
    first = feed.training_feed(images, 5, seed=2)
    taken(first, at)
    state = json.loads(json.dumps(first.get_state()))
    wanted = taken(first, 12)
    again = feed.training_feed(images, 5, seed=2)
    again.set_state(state)
    assert taken(again, 12) == wanted
    again.set_state(state)  # back, after it went on
    assert taken(again, 12) == wanted


@pytest.mark.parametrize('processes', [2, 3])
def test_processes_see_together_what_one_sees(example, processes):
    feed, images = example('feed'), numbered(example, 23)
    whole = taken(feed.training_feed(images, 6, seed=4), 9)
    shares = [taken(feed.training_feed(images, 6, 4, p, processes), 9) for p in range(processes)]
    assert [[i for part in parts for i in part] for parts in zip(*shares, strict=True)] == whole

    whole = list(feed.evaluation_batches(images, 6))
    shares = [list(feed.evaluation_batches(images, 6, p, processes)) for p in range(processes)]
    for (batch, counts), parts in zip(whole, zip(*shares, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate([part.y for part, _ in parts]), batch.y)
        np.testing.assert_array_equal(np.concatenate([mask for _, mask in parts]), counts)
    with pytest.raises(ValueError, match='multiple of the 4 processes, got 6'):
        feed.training_feed(images, 6, 4, 0, 4)


@pytest.mark.parametrize('size', [1, 5, 23, 40])
def test_evaluation_counts_every_image_once(example, size):
    images = numbered(example, 23)
    seen = list(example('feed').evaluation_batches(images, size))
    assert {batch.x.shape for batch, _ in seen} == {(size, 1, 1, 1)}
    assert [i for batch, counts in seen for i in batch.y[counts].tolist()] == list(range(23))


@pytest.mark.slow
def test_augmentation_moves_mirrors_and_puts_out(example):
    import jax

    feed = example('feed')
    x = np.random.default_rng(0).integers(1, 256, (32, 20, 24, 3), np.uint8)  # no zeros: these come from outside
    augment = jax.jit(feed.augment, static_argnames='flips')
    for flips in False, True:
        changed = np.asarray(augment(jax.random.key(1), x, flips))
        assert changed.shape == x.shape
        assert changed.dtype == x.dtype
        np.testing.assert_array_equal(changed, augment(jax.random.key(1), x, flips))
        assert (changed != augment(jax.random.key(2), x, flips)).any()
        mirrored, moves, holes, sides = [], set(), 0, np.zeros(4, bool)
        for before, after in zip(x, changed, strict=True):
            padded = np.pad(before, ((4, 4), (4, 4), (0, 0)))
            fitting = [
                (dy, dx, mirror)
                for mirror in (False, True)
                for dy in range(9)
                for dx in range(9)
                for crop in [padded[dy : dy + 20, dx : dx + 24][:, :: -1 if mirror else 1]]
                if (crop == after)[after > 0].all()
            ]
            assert len(fitting) == 1  # nothing but a move, a mirror and what was put out
            dy, dx, mirror = fitting[0]
            out = (after == 0) & (padded[dy : dy + 20, dx : dx + 24][:, :: -1 if mirror else 1] > 0)
            out = out.any(-1)
            assert out.sum() <= 64
            holes = max(holes, out.sum())
            sides |= [out[0].any(), out[-1].any(), out[:, 0].any(), out[:, -1].any()]
            mirrored.append(mirror)
            moves.add((dy, dx))
        assert holes == 64
        assert sides.all()  # also half out of the picture
        assert len(moves) > 20
        assert 6 < sum(mirrored) < 26 if flips else not any(mirrored)


def test_pixels_as_numbers(example):
    got = example('feed').to_float(np.array([0, 51, 255], np.uint8))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [0, 0.2, 1], rtol=1e-6)

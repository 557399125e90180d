"""Say what is on pictures, with a model that was trained here: class and probability for files and folders."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from options import Parser, Problem, check_packages

TOP = 3  # classes that are told for each picture
BATCH = 64  # pictures that go through the model together


def parser() -> Parser:
    """All options of the command."""
    result = Parser(
        prog='predict.py',
        description='Class and probability for pictures, by the latest checkpoint of a run. They may be of any size, '
        'shape and mode: the largest middle part of the shape that the model takes is resized to it, what is '
        'transparent becomes white, grey becomes colour, and of an animation the first picture is taken.',
        epilog='Exit code: 0 when every picture is read, 1 when some are not (each is named), 2 when there is nothing '
        'to say: no run, or no pictures.',
        allow_abbrev=False,
    )
    add = result.add_argument
    add('run', type=Path, metavar='RUN_FOLDER', help='the --output of train.py')
    add('paths', type=Path, nargs='+', metavar='PATH', help='picture, or folder of pictures (told by their endings)')
    add('--invert', action='store_true', help='for dark on light: the digits that are learned from are light on dark')
    add('--json', action='store_true', help='one JSON object a line, for programs')
    return result


def pictures(paths: Sequence[Path]) -> list[Path]:
    """The files themselves, and in place of each folder the pictures in it, at any depth."""
    from PIL import Image

    known = Image.registered_extensions()
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.rglob('*') if file.suffix.lower() in known and file.is_file())
        else:
            found.append(path)  # also one that isn't there, which is named as every one that can't be read
    if not found:
        raise Problem(f'no pictures in {", ".join(str(path) for path in paths)}; they are told by their endings, '
                      'such as .png and .jpg')  # fmt: skip
    return found


def read(path: Path, height: int, width: int, invert: bool = False) -> Any:
    """A picture as the model takes it: an array (height, width, 3) of uint8."""
    import numpy as np
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter('error', Image.DecompressionBombWarning)  # more pixels than any camera has
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
    if picture.mode == 'F':
        raise ValueError('its pixels are floating-point numbers, of a range that it does not say')
    if picture.mode.startswith('I'):  # 16 bits a pixel, which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    # bilinear, as the digits were made; where it makes smaller, it averages
    picture = ImageOps.fit(picture.convert('RGB'), (width, height), Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.invert(picture) if invert else picture)


def probabilities(model: Any, x: Any) -> Any:
    """The probabilities of the classes (n, classes) for images (n, height, width, 3) of uint8."""
    import brainstate
    import jax
    import numpy as np
    from data import Images
    from feed import evaluation_batches, to_float

    import jaxnorm

    # batches of one size, so that it is compiled once
    step = jaxnorm.jit(lambda x: jax.nn.softmax(model(to_float(x))))
    with brainstate.environ.context(fit=False):
        batches = evaluation_batches(Images(x, np.zeros(len(x), np.int32)), BATCH)
        return np.concatenate([np.asarray(step(batch.x))[counts] for batch, counts in batches])


def run(arguments: Sequence[str] | None = None) -> int:
    """Read, predict, tell: the exit code."""
    options = parser().parse_args(arguments)
    check_packages()
    # only here, so that --help and wrong options answer at once, and without these packages
    import numpy as np
    from trained import load

    files = pictures(options.paths)
    trained = load(options.run)
    read_ones: dict[Path, np.ndarray] = {}
    for path in files:
        try:
            read_ones[path] = read(path, *trained.in_size[:2], options.invert)
        except Exception as error:  # what decoders raise on damaged files is anything
            reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
            print(f"predict.py: can not read '{path}': {' '.join(reason.split())}", file=sys.stderr)
    if read_ones:
        answers = probabilities(trained.model, np.stack(list(read_ones.values())))
        for path, answer in zip(read_ones, answers, strict=True):
            best = [(trained.classes[c], float(answer[c])) for c in np.argsort(-answer, kind='stable')[:TOP]]
            if options.json:
                print(json.dumps({'path': str(path), 'classes': dict(best)}, ensure_ascii=False))
            else:
                print(f'{path}: ' + ', '.join(f'{name} {probability:.1%}' for name, probability in best))
    return 0 if len(read_ones) == len(set(files)) else 1


if __name__ == '__main__':
    try:
        sys.exit(run())
    except Problem as problem:
        parser().error(str(problem))

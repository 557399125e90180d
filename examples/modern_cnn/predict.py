"""Say what is on pictures, with a model that was trained here: class and probability for files and folders."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from options import Parser, Problem, check_packages, say

#: What Pillow only knows by name, or opens with another program's help
UNREADABLE = {'BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF'}
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

    endings = Image.registered_extensions()
    opened = {*Image.OPEN, 'MPO'} - UNREADABLE  # the plugin of JPEG opens MPO
    known = {ending for ending, kind in endings.items() if kind in opened}
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
    from picture import read, refusal, shown
    from trained import load

    files = pictures(options.paths)
    trained = load(options.run)
    read_ones: dict[Path, np.ndarray] = {}
    for path in files:
        try:
            read_ones[path] = read(path, *trained.in_size[:2], options.invert)
        except Exception as error:  # what decoders raise on damaged files is anything
            print(f'predict.py: {refusal(path, error)}', file=sys.stderr)
    if read_ones:
        answers = probabilities(trained.model, np.stack(list(read_ones.values())))
        if not np.isfinite(answers).all():
            raise Problem(f"the model of step {trained.step} in '{options.run}' makes numbers that are not finite; "
                          'train again with a smaller --learning-rate')  # fmt: skip
        for path, answer in zip(read_ones, answers, strict=True):
            best = [(trained.classes[c], float(answer[c])) for c in np.argsort(-answer, kind='stable')[:TOP]]
            if options.json:
                say(json.dumps({'path': str(path), 'classes': dict(best)}))
            else:
                say(f'{shown(path)}: ' + ', '.join(f'{name} {probability:.1%}' for name, probability in best))
    return 0 if len(read_ones) == len(set(files)) else 1


if __name__ == '__main__':
    try:
        sys.exit(run())
    except Problem as problem:
        parser().error(str(problem))

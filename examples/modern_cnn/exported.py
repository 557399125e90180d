"""The exported model: `logits(images)`, or `python exported.py picture.png`. Needs jax, flatbuffers and safetensors.

`export.py` puts this file beside what it writes; jaxnorm and brainstate aren't needed. The command reads pictures as
`predict.py` does, with picture.py and so with Pillow; `--invert` is for dark on light.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

FOLDER = Path(__file__).parent
with safe_open(FOLDER / 'weights.safetensors', framework='numpy') as file:
    metadata: dict[str, str] = file.metadata()
    weights: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
classes: list[str] = json.loads(metadata['classes'])
program: Any = jax.export.deserialize(bytearray((FOLDER / 'model.stablehlo').read_bytes()))


@jax.jit
def logits(images: Any) -> jax.Array:
    """Logits (n, classes) of n images, at least 1: uint8 (n, height, width, 3), the pixels of 0 to 255 as they are."""
    return program.call(weights, images)


def main(arguments: list[str]) -> int:
    """Class and probability for each picture: the exit code."""
    import picture

    height, width, _ = json.loads(metadata['in_size'])
    paths = [Path(argument) for argument in arguments if argument != '--invert']
    if not paths:
        print('exported.py: error: needs the file of at least one picture, got none; name some', file=sys.stderr)
        return 2
    code = 0
    for path in paths:
        try:
            image = picture.read(path, height, width, '--invert' in arguments)
        except Exception as error:  # what decoders raise on damaged files is anything
            print(f'exported.py: error: {picture.refusal(path, error)}', file=sys.stderr)
            code = 2
            continue
        probabilities = np.asarray(jax.nn.softmax(logits(image[None])[0]))
        print(f'{picture.shown(path)}: {classes[probabilities.argmax()]} {probabilities.max():.1%}')
    return code


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))

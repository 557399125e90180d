"""The exported model: `logits(images)`, or `python exported.py picture.png`. Needs jax, flatbuffers and safetensors.

`export.py` puts this file beside what it writes; jaxnorm and brainstate aren't needed.
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
    """Logits (n, classes) of any number of images: uint8 (n, height, width, 3), the pixels of 0 to 255 as they are."""
    return program.call(weights, images)


if __name__ == '__main__':
    from PIL import Image

    height, width, _ = json.loads(metadata['in_size'])
    for path in sys.argv[1:]:
        picture = np.asarray(Image.open(path).convert('RGB').resize((width, height), Image.Resampling.BILINEAR))
        probabilities = np.asarray(jax.nn.softmax(logits(picture[None])[0]))
        print(f'{path}: {classes[probabilities.argmax()]} {probabilities.max():.1%}')

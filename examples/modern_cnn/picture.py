"""Pictures of any size, shape and mode, as the model takes them. Needs NumPy and Pillow.

`export.py` puts this file beside what it writes.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def read(path: Path, height: int, width: int, invert: bool = False) -> np.ndarray:
    """A picture as the model takes it: an array (height, width, 3) of uint8."""
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


def refusal(path: Path, error: Exception) -> str:
    """Why a picture can not be read, in a sentence."""
    reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return f"can not read '{shown(path)}': {' '.join(reason.split())}"


def shown(path: Path) -> str:
    """A path in a line that can be printed anywhere: a name may hold line breaks, and bytes that are no text."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in str(path))

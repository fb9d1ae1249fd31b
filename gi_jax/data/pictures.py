"""Picture files to square uint8 arrays."""

import functools
import io

import numpy as np
from PIL import Image, ImageOps

from gi_jax.checks import InputError


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """The file name suffixes that Pillow can read, lower case, with their dot."""
    extensions = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in extensions.items() if kind in Image.OPEN)


def is_picture(name: str) -> bool:
    """Whether the suffix of the file name is one that Pillow can read."""
    base = name.rsplit("/", 1)[-1]
    return "." in base and "." + base.rsplit(".", 1)[-1].lower() in picture_suffixes()


def decode(data: bytes, where: str, size: int) -> np.ndarray:
    """Decodes one picture file to RGB, cuts its center square and resizes it with antialiasing.

    A picture that has `size` x `size` pixels already keeps its pixels as they are. What is transparent shows white, not
    the colors that a file happens to hide there.

    Args:
        data: the content of the file.
        where: the name of the file, for the error message.
        size: height and width of the result.

    Returns:
        uint8 [size, size, 3].

    Raises:
        InputError: the file is damaged, or no picture of 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            deep = picture.mode.startswith(("I", "F"))
            upright = ImageOps.exif_transpose(picture)
            square = _square((upright if deep else _on_white(upright)).convert("RGB"), size)
    except Exception as error:  # the decoders behind Pillow raise errors of many kinds on damaged files
        raise InputError(
            f"{where} cannot be read as a picture ({type(error).__name__}); "
            "expected a complete picture file: replace or remove it"
        ) from error
    if deep:
        raise InputError(f"{where} has more than 8 bits a channel; expected 8 bits: convert it first")
    return square


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Center-cut and antialiased resize of pictures in memory.

    Args:
        images: uint8 [n, h, w, c], of any number of channels.
        size: height and width of the result.

    Returns:
        uint8 [n, size, size, c].
    """
    channels = np.moveaxis(images, -1, 1)
    small = np.stack([[_square(Image.fromarray(channel), size) for channel in image] for image in channels])
    return np.moveaxis(small, 1, -1)


def _on_white(picture: Image.Image) -> Image.Image:
    """The picture laid on white; itself if it has no transparency."""
    if not picture.has_transparency_data:
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))


def _square(picture: Image.Image, size: int) -> np.ndarray:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))

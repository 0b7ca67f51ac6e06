"""Opening encoded images that may come from a stranger."""

from __future__ import annotations

import contextlib
import io
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kerasnet.errors import BadInputError

if TYPE_CHECKING:
    from PIL import Image

    from kerasnet.data.splits import Size

# Pillow reads dozens of formats more, PostScript by running another program among them.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
# A quarter of a GiB as RGB; where Pillow only begins to warn.
MAX_PIXELS = 2**30 // 4 // 3
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# JPEG's markers: those of a frame, which give its size, and those that only have a length.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEGMENTS = frozenset((0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@contextlib.contextmanager
def open_image(source: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open an image, of which only the header is read until its pixels are asked for.

    Args:
        source: a file, or its content.
        name: of it, for messages.

    Raises:
        BadInputError: it is no image of a known format, is damaged (also where its pixels are read
            inside the `with`), or has more than MAX_PIXELS pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"it has {image.height}×{image.width} pixels, more than {MAX_PIXELS:,}"
                )
            yield image
    except BadInputError:
        raise
    except UnidentifiedImageError as e:
        raise BadInputError(
            f"{name} cannot be read as an image: it is none of {', '.join(FORMATS)}"
        ) from e
    # Pillow does not say what its many readers raise on damage.
    except Exception as e:
        raise BadInputError(f"{name} cannot be read as an image: {e}") from e


def _declared(content: bytes) -> Size | None:
    """Return the height and width that a PNG or JPEG declares, None where that is not plain.

    It takes a tenth of Pillow's time, which is as long as decoding a small image.
    """
    if content.startswith(_PNG) and len(content) >= 24:
        width, height = struct.unpack_from(">II", content, len(_PNG))
        return height, width
    at = 2
    while content[:2] == b"\xff\xd8" and len(content) > at + 9 and content[at] == 0xFF:
        kind = content[at + 1]
        if kind in _FRAMES:
            height, width = struct.unpack_from(">HH", content, at + 5)
            return height, width
        if kind not in _SEGMENTS:
            return None
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return None


def vetted(content: bytes, size: Size | None, channels: int) -> bytes:
    """Return an encoded image in a form that TensorFlow can be trusted to decode.

    TensorFlow makes room for as many pixels as a header declares, and reads every frame of a GIF.

    Args:
        content: an image of one of FORMATS.
        size: the height and width that it must have, if any.
        channels: 1, 3 or 4; what it will be decoded to.

    Returns:
        The argument if it is a JPEG or a PNG, else its first frame as a PNG.

    Raises:
        BadInputError: as `open_image`, or it has another size.
    """
    declared = _declared(content)
    if declared and (declared == size if size else math.prod(declared) <= MAX_PIXELS):
        return content
    with open_image(io.BytesIO(content), "its content") as image:
        if size is not None and (image.height, image.width) != size:
            raise BadInputError(
                f"its image has {image.height}×{image.width} pixels, not {size[0]}×{size[1]}"
            )
        if image.format in ("JPEG", "MPO", "PNG"):
            return content
        plain = io.BytesIO()
        image.convert(_MODES[channels]).save(plain, "PNG")
        return plain.getvalue()

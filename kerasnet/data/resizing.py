"""Resizing without TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kerasnet.data.splits import Bytes, Size


def _resize_matrix(source: int, target: int) -> NDArray[np.float32]:
    import numpy as np

    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def resize(images: Bytes, size: Size) -> Bytes:
    """Resize bilinearly, with antialiasing where an image becomes smaller.

    The same as `tf.image.resize(..., "bilinear", antialias=True)` and Pillow's `BILINEAR` to within
    one level, without either, for any number of channels.

    Args:
        images: uint8, (n, height, width, channels).
        size: the new height and width in pixels.

    Returns:
        uint8, (n, *size, channels); the argument itself if it has that size already.
    """
    import numpy as np

    n, height, width, channels = images.shape
    if (height, width) == size:
        return images
    rows, columns = _resize_matrix(height, size[0]), _resize_matrix(width, size[1])
    out = np.empty((n, *size, channels), np.uint8)
    block = max(1, 2**23 // (max(height, size[0]) * max(width, size[1]) * channels))
    for i in range(0, n, block):
        part = images[i : i + block].astype(np.float32)
        part = np.tensordot(part, rows, axes=(1, 1))
        part = np.tensordot(part, columns, axes=(1, 1)).transpose(0, 2, 3, 1)
        out[i : i + block] = np.clip(np.rint(part), 0, 255)
    return out

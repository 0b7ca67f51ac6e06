"""Finding the files that ship with kerasnet, and writing files that are never half there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from kerasnet.errors import EnvironmentFaultError

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """Return the path of a shipped file or folder: `registry.yaml`, `tuning`.

    A wheel carries them inside the package; a source checkout keeps them beside it.

    Raises:
        FileNotFoundError: the installation lacks it.
    """
    for base in (_PACKAGE / "_data", _PACKAGE.parent):
        path = base / name
        if path.exists():
            return path
    raise FileNotFoundError(f"kerasnet's own '{name}' is missing: the installation is incomplete")


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    Raises:
        EnvironmentFaultError: the disk is full, the folder read-only, or the like.
    """
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise EnvironmentFaultError(
            f"{file}: cannot be written: {error.strerror or error}. Make room or choose another "
            "folder with --out"
        ) from error

"""Finding the files that ship with kerasnet, and writing files that are never half there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from kerasnet.errors import BadInputError, EnvironmentFaultError

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


def check_new(folder: str | os.PathLike[str]) -> None:
    """Check that a folder can be used for new results.

    Raises:
        BadInputError: there is a file of this name, or the folder is not empty.
        EnvironmentFaultError: it cannot be looked at.
    """
    path = Path(folder)
    try:
        if path.is_dir():
            if any(path.iterdir()):
                raise BadInputError(
                    f"{path}: already there and not empty; choose another folder with --out"
                )
        elif path.exists() or path.is_symlink():
            raise BadInputError(f"{path}: is a file; choose a folder with --out")
    except OSError as error:
        raise EnvironmentFaultError(f"{path}: {error.strerror or error}") from error


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder and those above it; one that is there is left as it is.

    Raises:
        EnvironmentFaultError: it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFaultError(
            f"{folder}: cannot be made: {error.strerror or error}. Choose another folder with --out"
        ) from error
    return Path(folder)


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

"""Finding the files that ship with kerasnet, and writing files that are never half there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kerasnet.errors import BadInputError, EnvironmentFaultError, InUseError, is_wrong_name

T = TypeVar("T", bound=BaseModel)
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


# What a process leaves that was killed before it wrote its first file.
LOCK, TEMPORARY = ".lock", ".temporary"


def cache_folder() -> Path:
    """Return the user's folder for what can be made again."""
    from platformdirs import user_cache_path

    return user_cache_path("kerasnet")


def check_new(folder: str | os.PathLike[str]) -> None:
    """Check that a folder can be used for new results.

    Raises:
        BadInputError: there is a file of this name, or the folder is not empty.
        EnvironmentFaultError: it cannot be looked at.
    """
    path = Path(folder)
    try:
        if path.is_dir():
            if any(not entry.name.endswith((LOCK, TEMPORARY)) for entry in path.iterdir()):
                raise BadInputError(
                    f"{path}: already there and not empty; choose another folder with --out"
                )
        elif path.exists() or path.is_symlink():
            raise BadInputError(f"{path}: is a file; choose a folder with --out")
    except OSError as error:
        kind = BadInputError if is_wrong_name(error) else EnvironmentFaultError
        raise kind(
            f"{path}: {error.strerror or error}; choose another folder with --out"
        ) from error


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


def write_atomically(file: Path, *content: bytes | memoryview) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    Args:
        file: where to; its folder is made if it is missing.
        content: what it will hold, in parts.

    Raises:
        EnvironmentFaultError: the disk is full, the folder read-only, or the like.
    """
    _write({file: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files as `write_atomically` does, and none before there is room for all.

    Args:
        files: what each will hold.

    Raises:
        EnvironmentFaultError: as `write_atomically`. Where there was no room, every file is what it
            was before.
    """
    _write({file: [content] for file, content in files.items()})


def _write(files: Mapping[Path, Iterable[bytes | memoryview]]) -> None:
    temporary: dict[Path, Path] = {}
    file = next(iter(files))
    try:
        for file, content in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(TEMPORARY, f".{file.name}.", file.parent)
            temporary[file] = Path(name)
            with os.fdopen(descriptor, "wb") as stream:
                stream.writelines(content)
                stream.flush()
                temporary[file].chmod(0o644)
                os.fsync(stream.fileno())
        for file in files:
            temporary[file].replace(file)
            del temporary[file]
            _sync_folder(file.parent)
    except OSError as error:
        raise EnvironmentFaultError(
            f"{file}: cannot be written: {error.strerror or error}. Make room or choose another "
            "folder with --out"
        ) from error
    finally:
        for left in temporary.values():
            with contextlib.suppress(OSError):
                left.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a renamed file's new name last; only where the system lets folders be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, doing: str, part: str = "") -> Iterator[None]:
    """Keep other processes from working in a folder; the lock goes with the process.

    Args:
        folder: what one process works in at a time.
        doing: what is done with it: `trained`, `searched`.
        part: of the folder, where one process works in each part at a time.

    Raises:
        InUseError: another process works there.
        EnvironmentFaultError: the folder cannot be written.
    """
    import portalocker

    file = folder / (f".{part}{LOCK}" if part else LOCK)
    with _opened_lock(file) as stream:
        try:
            portalocker.lock(stream, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.AlreadyLocked as error:
            owner = stream.read(100).decode(errors="replace").strip() or file
            raise InUseError(
                f"{folder}: is being {doing} by another process ({owner}). Wait until it has "
                "ended, or choose another folder with --out"
            ) from error
        except portalocker.LockException as error:
            raise EnvironmentFaultError(
                f"{file}: cannot be locked: {error}. Choose a folder on another file system with "
                "--out"
            ) from error
        # A full disk must not keep a folder from being looked at.
        with contextlib.suppress(OSError):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        try:
            yield
        finally:
            portalocker.unlock(stream)


@contextlib.contextmanager
def _opened_lock(file: Path) -> Iterator[io.FileIO]:
    try:
        # Neither truncated, for its owner is read from it, nor followed to somebody else's file.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        stream = io.FileIO(os.open(file, flags, 0o644), "r+")
    except OSError as error:
        raise EnvironmentFaultError(
            f"{file}: cannot be written: {error.strerror or error}; results are written into this "
            "folder"
        ) from error
    with stream:
        yield stream


def remove_temporaries(folder: Path) -> None:
    """Remove what a process that was killed while writing left in a folder."""
    for left in folder.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def read_bytes(file: Path, limit: int) -> bytes:
    """Read a file that may come from a stranger.

    Args:
        file: the file.
        limit: bytes; a larger file is refused before it is read.

    Raises:
        BadInputError: it is missing, unreadable, larger than that, or a pipe or the like.
    """
    try:
        # Opening a pipe waits until somebody writes into it.
        if file.exists() and not file.is_file():
            raise OSError("it is no regular file")
        with file.open("rb") as stream:
            large = os.fstat(stream.fileno()).st_size > limit
            content = b"" if large else stream.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInputError(f"{file}: cannot be read: {reason}") from error
    if large or len(content) > limit:
        raise BadInputError(f"{file}: is larger than {limit:,} bytes, too large for what it is")
    return content


def read_json(file: Path, limit: int = 2**26) -> Any:
    """Read a JSON file that may come from a stranger.

    Args:
        file: the file.
        limit: bytes; a larger file is refused.

    Raises:
        BadInputError: it is missing, unreadable, too large, nested too deeply, or no JSON.
    """
    content = read_bytes(file, limit)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{file}: not JSON: {error}") from error


def checked(cls: type[T], value: Any, file: Path, what: str) -> T:
    """Return what was read from a file as a model of pydantic's.

    Args:
        cls: the model.
        value: plain values, which may come from a stranger.
        file: where they were read.
        what: what they should be, such as "a run's summary".

    Raises:
        BadInputError: they are not; with the first field that is wrong.
    """
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInputError(f"{file}: not {what}: {where}: {first['msg']}") from error

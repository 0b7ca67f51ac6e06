"""Where the files that ship with kerasnet are."""

from __future__ import annotations

from pathlib import Path

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

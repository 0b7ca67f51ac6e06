"""Calling the command line in this process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kerasnet.cli import main


def run_cli(capture, *arguments: str) -> tuple[int, str, str]:
    """Return the exit code, the output and the messages of a command.

    Args:
        capture: pytest's `capsys` or `capfd`.
        arguments: of the command line.
    """
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capture.readouterr()
    return int(ended.value.code or 0), out, err


HEAVY = ("tensorflow", "keras", "numpy", "matplotlib", "sklearn", "torch")


def run_lightly(*arguments: str) -> str:
    """Return the output of a command in a new process that must load none of `HEAVY`."""
    code = (
        "import sys\n"
        "from kerasnet.cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        f"heavy = set({HEAVY!r}) & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

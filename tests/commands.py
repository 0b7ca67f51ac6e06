"""Calling the command line in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

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


def assert_refused_lightly(bad: Sequence[tuple[Sequence[str], str]]) -> None:
    """Hold that command lines are refused, each with a text, before TensorFlow or Keras load."""
    code = (
        "import contextlib, io, json, sys\n"
        "from kerasnet.cli import main\n"
        "for words, said in json.loads(sys.argv[1]):\n"
        "    err = io.StringIO()\n"
        "    with contextlib.redirect_stderr(err):\n"
        "        try: main(words)\n"
        "        except SystemExit as end: assert end.code == 2, (words, end.code)\n"
        "    assert said in err.getvalue(), (words, err.getvalue())\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(bad)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

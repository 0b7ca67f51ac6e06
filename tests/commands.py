"""Calling the command line in this process."""

from __future__ import annotations

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

"""A contestant in a process of its own: a request a line on standard input, an answer on output.

The first request makes the contestant; each later one calls a method of it. Whatever libraries
print goes to standard error, so that nothing but answers is on standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from kerasnet.errors import KerasnetError


def peak_memory() -> int:
    """Return the largest resident set that this process has had, in bytes.

    `getrusage` would count the parent's, too, for Linux hands its peak on to a new process.
    """
    try:
        with open("/proc/self/status") as status:
            for entry in status:
                if entry.startswith("VmHWM:"):
                    return int(entry.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Session:
    """What the requests of one process are answered from."""

    contestant: Any = None

    def answer(self, request: Mapping[str, Any]) -> Any:
        what, arguments = request["ask"], request["arguments"]
        if what == "make":
            module, _, maker = request["kind"].partition(":")
            self.contestant = getattr(importlib.import_module(module), maker)(**arguments)
            return None
        if what == "peak_memory":
            return peak_memory()
        return getattr(self.contestant, what)(**arguments)


def main() -> None:
    """Answer until standard input ends."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        session = _Session()
        for entry in sys.stdin:
            try:
                answer = {"answer": session.answer(json.loads(entry))}
            except KerasnetError as error:
                answer = {"error": str(error), "exit_code": error.exit_code}
            except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}", "exit_code": 1}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""A contestant that measures nothing, for what may go wrong with a worker."""

from __future__ import annotations

import os
import sys
import time

from kerasnet.errors import BadInputError


class Probe:
    def echo(self, value):
        return value

    def pid(self):
        return os.getpid()

    def chatter(self, text):
        print(text, flush=True)
        os.write(1, text.encode())
        return "done"

    def die(self, words, code):
        print(words, file=sys.stderr, flush=True)
        os._exit(code)

    def refuse(self, text):
        raise BadInputError(text)

    def fail(self):
        return 1 / 0

    def sleep(self, seconds):
        time.sleep(seconds)

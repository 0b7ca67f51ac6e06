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


class Trainer(Probe):
    """Claims to train at so many images a second."""

    def __init__(self, config, policy=None, ready=False, way=None):
        self.precision = policy or config["precision"]["resolved"]
        self.pace = 2.0 if ready or way == "kerasnet" else 1.0

    def facts(self):
        return {"precision": self.precision, "devices": ["cpu:0"]}

    def run(self, steps, untimed):
        return {"seconds": steps / self.pace, "steps": steps}

    def build_seconds(self):
        return 0.5

    def pipeline_seconds(self, steps):
        return 0.01

    def gemm(self, dtype, size, seconds):
        return 1e9 * {"float32": 1, "bfloat16": 2}[dtype]


class Ours(Trainer):
    """Another kind, which does the same."""


class Beginning(Probe):
    """Claims that each part of a start took so long."""

    def __init__(self, config, who):
        self.parts = {"import": 1.0, "data": 2.0, "build": 3.0, "first step": 4.0}

    def begin(self):
        return self.parts

"""Thousands of damaged registries and command lines: an answer each, and never a traceback.

Every case has a seed of its own, which a failure names: `damaged(seed)` or `mangled(seed)` makes
it again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import random
import re
import signal
import string
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import kerasnet
from kerasnet import cli
from kerasnet.config import resolve
from kerasnet.convert import save_arrays
from kerasnet.document import to_yaml
from kerasnet.files import shipped
from kerasnet.plan import plan_model
from kerasnet.registry import load_registry

MOST_SECONDS = 10.0
README = Path(kerasnet.__file__).parents[1] / "README.md"

# ---------------------------------------------------------------------------- calling


class HungError(BaseException):
    """A call took too long; no `except Exception` may swallow it."""


@dataclass
class Tally:
    """What came of many calls."""

    codes: Counter[Any] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    slowest: str = ""
    failures: list[str] = field(default_factory=list)

    def add(self, label: str, words: Sequence[str]) -> int | None:
        """Call the command line, note what came of it, and return the exit code."""
        code, out, err, seconds, raised = call(words)
        if seconds >= max(self.seconds, default=0.0):
            self.slowest = label
        self.codes[code] += 1
        self.seconds.append(seconds)
        wrong = [
            (bool(raised), raised),
            (not raised and code not in (0, 2), f"exit code {code}: {err[:500]}"),
            ("Traceback" in out + err, err[-2000:]),
            (code == 2 and not err.strip(), "exit code 2 without a message"),
            (len(err) > 50_000 + len("".join(words)), f"{len(err):,} characters: {err[:300]}"),
            (seconds > MOST_SECONDS, f"{seconds:.1f} s"),
        ]
        shown = [word if len(word) < 200 else word[:80] + "…" for word in words]
        self.failures += [f"{label} {shown!r}: {said}" for bad, said in wrong if bad]
        return code

    def check(self, record: Callable[[str, object], None]) -> None:
        """Print and record the figures, and fail if anything was wrong."""
        figures = {
            "calls": len(self.seconds),
            "by exit code": dict(sorted(self.codes.items(), key=str)),
            "failures": len(self.failures),
            "slowest call": f"{max(self.seconds):.2f} s ({self.slowest})",
            "total": f"{sum(self.seconds):.1f} s",
        }
        for name, value in figures.items():
            record(name, value)
        print("\n" + ", ".join(f"{name}: {value}" for name, value in figures.items()))
        assert not self.failures, "\n\n".join(self.failures[:8])


def call(words: Sequence[str]) -> tuple[Any, str, str, float, str]:
    """Return a call's exit code, output, messages and seconds, and what it raised instead."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code: Any = None
    raised = ""
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(list(words))
        raised = "returned, and did not exit"
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # noqa: BLE001
        raised = traceback.format_exc()[-3000:]
    finally:
        seconds = time.perf_counter() - start
        signal.setitimer(signal.ITIMER_REAL, 0)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "replace"))
    return code, texts[0], texts[1], seconds, raised


@pytest.fixture
def place(tmp_path, monkeypatch) -> Iterator[Path]:
    """Stand in an empty folder, without a network, and make a hang a failure."""

    def stop(signum, frame):
        raise HungError

    for name in ("KERASNET_DATA_DIR", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "kerasnet" and hasattr(module, "network_reaches"):
            monkeypatch.setattr(module, "network_reaches", lambda *_, **__: False)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    before = signal.signal(signal.SIGALRM, stop)
    # A hang inside a C function hears no signal.
    with open(os.devnull, "w") as nowhere:
        last_words = sys.__stderr__ or nowhere
        faulthandler.dump_traceback_later(900, exit=True, file=last_words)
        yield empty
        faulthandler.cancel_dump_traceback_later()
    signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------------- registries


def entries(text: str) -> dict[tuple[str, str], str]:
    """Cut the text of a registry into its entries, by section and name."""
    found: dict[tuple[str, str], str] = {}
    section = name = ""
    for line in text.splitlines():
        if re.match(r"\w+:", line):
            section, name = line.rstrip(":"), ""
        elif match := re.match(r"  (\w+):", line):
            name = match[1]
        if name and line.startswith("  "):
            found[section, name] = found.get((section, name), "") + line + "\n"
    return found


def seeds() -> list[str]:
    """Return valid small registries, a search space and a configuration."""
    shipped_text = shipped("registry.yaml").read_text()
    known = entries(shipped_text)

    def made(**names: str) -> str:
        return "".join(
            f"{section}:\n" + "".join(known[section, name] for name in wanted.split())
            for section, wanted in names.items()
        )

    found = [
        made(blocks="basic basic_padded basic_plain_projection conv3x3", models="resnet8"),
        made(blocks="bottleneck_v1 bottleneck_sum", models="resnet50"),
        made(blocks="conv3x3", models="vgg16", recipes="vgg"),
        made(models="resnet20", recipes="default small"),
        made(recipes="original default vgg small digits"),
        made(datasets="cifar10 cifar100 fashion_mnist digits"),
        made(norms="bn", recipes="digits", datasets="digits", blocks="basic"),
        shipped("tuning").joinpath("learning_rate.yaml").read_text(),
        to_yaml(resolve("resnet8", dataset="digits")),
    ]
    example = re.search(r"`mine.yaml`:\n\n```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    assert example is not None
    return [*found, example[1], example[1].replace("[32, 32, 3]", "[28, 28, 1]")]


SCALARS = [
    ".nan", ".inf", "-.inf", "nan", "inf", "1e999", "-1e999", "1e-400", "-1", "0", "-0", "1", "2",
    "3.5", "99999999999999999999", "18446744073709551615", "9223372036854775807", "65536", "65537",
    "0x1f", "0o17", "017", "1_000", "12:30:45", "2001-01-01", "null", "~", "", "true", "false",
    "no", "'", '"', '""', "' '", '"\\0"', '"\\e[2J"', '"\\uD800"', '"\\UFFFFFFFF"', "|", ">", "|2",
    "[]", "{}", "[[[[1]]]]", "{a: {b: {c: d}}}", "[1, two, 3.0, null]", "!!python/name:os.system",
    "!!int x", "!mine 1", "*a", "&a 1", "<<", "%", "@", "`", "é", "×", "\u202e", "x" * 5000,
    "日本語", "[" * 200, "width", "4 * width", "0 * width", "classes", "none", "change", "sgd",
    "type", "constant", "one_cycle", "fraction", "tfds", "folder", "resnet50", "basic", "bn", "*",
    "nosuchblock", "../x", "/dev/zero", "relu", "flatten", "{dense: classes}", "[4, 4, 4]",
]  # fmt: skip
STRANGE = "\x00\x01\x07\x1b\x7f\x85\u2028\ufeff\ufffe\U0001f600é×'\"{}[]:,#&*!|>%@`?-\t\r\n \\~=<"
SCALAR = re.compile(r"(?<=[:\[,] )(?![\[{])[^,\]}\n]+|(?<=\[)(?![\[{])[^,\]}\n]+")
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?=:)")

Change = Callable[[random.Random, str, list[str]], str]


def lines_of(text: str) -> list[str]:
    return text.splitlines(keepends=True) or [""]


def on_lines(change: Callable[[random.Random, list[str]], None]) -> Change:
    """Make a change of a list of lines one of a text."""

    def changed(rng: random.Random, text: str, others: list[str]) -> str:
        lines = lines_of(text)
        change(rng, lines)
        return "".join(lines)

    return changed


def reindent(rng: random.Random, lines: list[str]) -> None:
    i = rng.randrange(len(lines))
    bare = lines[i].lstrip(" ")
    lines[i] = " " * max(0, len(lines[i]) - len(bare) + rng.choice((-4, -2, -1, 1, 2, 4))) + bare


def swap(rng: random.Random, items: list[str]) -> None:
    i, j = rng.randrange(len(items)), rng.randrange(len(items))
    items[i], items[j] = items[j], items[i]


def drop(rng: random.Random, items: list[str]) -> None:
    del items[rng.randrange(len(items))]


def double(rng: random.Random, items: list[str]) -> None:
    items.insert(rng.randrange(len(items) + 1), rng.choice(items))


def at_random(new: Callable[[random.Random], str], width: int = 0) -> Change:
    """Put `new` in the place of `width` characters anywhere."""

    def changed(rng: random.Random, text: str, others: list[str]) -> str:
        i = rng.randrange(len(text) + 1)
        return text[:i] + new(rng) + text[i + width :]

    return changed


def instead(pattern: re.Pattern[str], new: Callable[[random.Random, str, str], str]) -> Change:
    """Put `new`, of the match and the text, in the place of a match anywhere."""

    def changed(rng: random.Random, text: str, others: list[str]) -> str:
        found = list(pattern.finditer(text))
        if not found:
            return text
        match = rng.choice(found)
        return text[: match.start()] + new(rng, match[0], text) + text[match.end() :]

    return changed


def another_value(rng: random.Random, value: str, text: str) -> str:
    return rng.choice(SCALAR.findall(text))


def near_miss(rng: random.Random, key: str, text: str) -> str:
    i = rng.randrange(len(key))
    extra = rng.choice(string.ascii_lowercase)
    return rng.choice([key[:i] + key[i + 1 :], key[:i] + extra + key[i:], key[:i] + key[i:][::-1]])


def own_parent(rng: random.Random, text: str, others: list[str]) -> str:
    """Make an entry extend itself, or one that there is not."""
    names = list(re.finditer(r"^  (\w+):\n", text, re.MULTILINE))
    if not names:
        return text
    name = rng.choice(names)
    parent = rng.choice([name[1], "nobody", *(other[1] for other in names)])
    return text[: name.end()] + f"    extends: {parent}\n" + text[name.end() :]


def cut(rng: random.Random, text: str, others: list[str]) -> str:
    return text[: rng.randrange(len(text) + 1)]


def joined(rng: random.Random, text: str, others: list[str]) -> str:
    return text + rng.choice(["", "---\n", "...\n", "\n"]) + rng.choice(others)


TEXT_CHANGES: list[Change] = [
    on_lines(drop),
    on_lines(double),
    on_lines(swap),
    on_lines(reindent),
    at_random(lambda rng: "", 1),
    at_random(lambda rng: "", 7),
    at_random(lambda rng: rng.choice(STRANGE)),
    at_random(lambda rng: rng.choice(string.printable), 1),
    at_random(lambda rng: rng.choice(SCALARS)),
    *[instead(SCALAR, lambda rng, value, text: rng.choice(SCALARS))] * 4,
    *[instead(SCALAR, another_value)] * 2,
    instead(KEY, near_miss),
    instead(re.compile(r"(?<=block: )\w+"), lambda rng, value, text: rng.choice(["no", "bassic"])),
    own_parent,
    cut,
    joined,
]


def damaged(seed: str, texts: list[str]) -> bytes:
    """Return one of some documents after one to four changes."""
    rng = random.Random(seed)
    text = rng.choice(texts)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        text = rng.choice(TEXT_CHANGES)(rng, text, texts)
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.08:
        for _ in range(rng.randint(1, 3)):
            if raw:
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def test_the_seeds_are_valid(place, tmp_path):
    for text in seeds():
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        code, _, err, _, raised = call(["validate", str(file)])
        assert (code, err, raised) == (0, "", ""), text


def validate_many(count: int, texts: list[str], folder: Path, name: str) -> Tally:
    tally = Tally()
    file = folder / "mine.yaml"
    for i in range(count):
        file.write_bytes(damaged(f"{name}/{i}", texts))
        code = tally.add(f"{name}/{i}", ["validate", str(file)])
        # What `validate` accepts, the others must be able to use.
        if code == 0 and i % 5 == 0:
            tally.add(f"{name}/{i}/summary", ["summary", "--json", "--registry", str(file)])
    return tally


@pytest.mark.parametrize("number", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_registries(number, place, tmp_path, record_property):
    tally = validate_many(number, seeds(), tmp_path, "registry")
    tally.check(record_property)
    assert tally.codes[0] > number // 20
    assert tally.codes[2] > number // 2


@pytest.mark.slow
def test_three_hundred_damages_to_the_shipped_registry(place, tmp_path, record_property):
    texts = [shipped("registry.yaml").read_text()]
    validate_many(300, texts, tmp_path, "shipped").check(record_property)


# ---------------------------------------------------------------------------- command lines


def files(folder: Path) -> dict[str, str]:
    """Make what the options of a command line name, and return the names."""
    from PIL import Image

    config = resolve("resnet8", dataset="digits")
    run = folder / "run"
    run.mkdir()
    made = {"run": str(run), "images": str(folder / "images"), "fifo": str(folder / "fifo")}
    for file in (run / "config.yaml", folder / "config.yaml"):
        file.write_text(to_yaml(config))
    for name in ("cat", "dog"):
        inside = folder / "images" / name
        inside.mkdir(parents=True)
        for i in range(12):
            Image.fromarray(np.full((9, 9, 3), i, "uint8")).save(inside / f"{i}.png")
    weights = {key: np.zeros(shape, "float32") for key, shape in plan_variables().items()}
    save_arrays(weights, folder / "first.safetensors")
    (folder / "mine.yaml").write_text("models: {mine: {extends: resnet8, classes: 10}}\n")
    (folder / "broken.yaml").write_text("models: {mine: [\n")
    (folder / "torn.safetensors").write_bytes(b"\xff" * 100)
    os.mkfifo(folder / "fifo")
    names = ("config.yaml", "mine.yaml", "broken.yaml", "first.safetensors", "torn.safetensors")
    return made | {name: str(folder / name) for name in names} | {"new": str(folder / "new")}


def plan_variables() -> dict[str, tuple[int, ...]]:
    return plan_model(load_registry().architecture("resnet8")).variables()


def fit_lines(made: dict[str, str]) -> list[list[str]]:
    """Return valid command lines, without `fit --dry-run` before them."""
    text = f"""
        resnet8 --dataset digits
        resnet50 --dataset digits --json
        vgg16 --dataset digits --recipe digits
        resnet20 --dataset digits --recipe original --epochs 3 --batch-size 64
        resnet8 --dataset digits --learning-rate 0.01 --seed 7
        resnet8 --dataset digits --learning-rate=1e-3 --epochs=2
        resnet8 --dataset digits --learning-rate find --epochs 3
        resnet8 --dataset digits --precision float32
        resnet8 --dataset digits --precision mixed_bfloat16 --json
        resnet8 --dataset digits --precision auto --limit-train 100
        resnet8 --dataset digits --out {made["new"]}
        resnet8 --dataset digits --out runs/relative
        resnet8 --dataset digits --data-dir {made["images"]}
        resnet8 --dataset digits --weights {made["first.safetensors"]}
        mine --dataset digits --registry {made["mine.yaml"]}
        mine --registry {made["mine.yaml"]} --dataset digits --epochs 1 --out {made["new"]}
        resnet8 --dataset {made["images"]} --recipe small
        resnet8 --dataset {made["images"]} --recipe small --limit-train 4 --batch-size 2
        --config {made["config.yaml"]}
        --config {made["config.yaml"]} --json
        --config {made["config.yaml"]} --epochs 5 --seed 3
        --config {made["config.yaml"]} --learning-rate 0.5 --out {made["new"]}
        --config {made["config.yaml"]} --precision float32 --weights {made["first.safetensors"]}
        resnet8 --config {made["config.yaml"]} --batch-size 16
        --config {made["config.yaml"]} --limit-train 50 --data-dir {made["images"]}
        --resume {made["run"]}
        --resume {made["run"]} --epochs 80
        --resume {made["run"]} --epochs 80 --rescale
        --resume {made["run"]} --checkpoint-every 2 minutes --json
        --resume {made["run"]} --on-nan rollback --keep-checkpoints 3
        resnet8 --dataset digits --checkpoint-every 100 steps --keep-checkpoints 1
        resnet8 --dataset digits --deterministic --on-nan rollback
        resnet8 --dataset digits --deterministic --checkpoint-every 0.5 minutes --on-nan stop
    """
    return [line.split() for line in text.strip().splitlines()]


def light_lines(made: dict[str, str]) -> list[list[str]]:
    text = f"""
        list
        list resnet* --json
        list --registry {made["mine.yaml"]}
        show resnet50
        show digits --json
        show mine --registry {made["mine.yaml"]}
        summary
        summary resnet8 --depth stage
        summary resnet8 --json --classes 7 --input-size 48x64x3
        summary vgg16 --explain
        summary bottleneck_sum --input-size 8x8x64 --width 64 --stride 2
        validate {made["mine.yaml"]}
        validate {made["config.yaml"]} --json
        diff resnet8 resnet20 --input-size 48x64x3
        diff basic {made["config.yaml"]} --json
        schema space
    """
    return [line.split() for line in text.strip().splitlines()]


# The words that keep a command from working for hours; they are never changed.
FIT = ["fit", "--dry-run"]
HELP = [["tune", "--help"], ["evaluate", "--help"], ["fit", "--help"], ["--help"], ["--version"]]


def options(*commands: str) -> dict[str, list[str]]:
    """Return the options of commands, each with values it might take."""
    group: Any = typer.main.get_command(cli.app)
    found = {}
    for option in [option for command in commands for option in group.commands[command].params]:
        parts = [] if getattr(option, "is_flag", False) else (option.metavar or "N").split()
        values = [part.split("|")[0] if "|" in part else "3" for part in parts]
        found |= {name: values for name in option.opts if name.startswith("-")}
    return found


WORDS = [
    "", " ", "-", "--", "---", "-1", "0", "1", "1e999", "-1e999", "1e-999", "nan", "NaN", "inf",
    "-inf", "1_000", "0x10", "3.5", "０", "٣", "9" * 20, "9" * 400, "9" * 5000, "-" + "9" * 30,
    "2147483648", "4294967296", "18446744073709551616", "true", "None", "null", "é", "日本語",
    "\u202e", "\U0001f600", "\udcff\udcfe", "a\ud800b", "\x01\x02\x1b[2J\x7f", "\n", "a\nb", "\t",
    "x" * 300, "x" * 5000, "x" * 200_000, "x" * 300 + "/y", "/" * 5000, "a/" * 3000, "/", ".", "..",
    "~", "~nobody/x", "../../x", "/dev/null", "/dev/zero", "/dev/full", "/nonexistent/x", "/proc",
    "/proc/self/mem", "/proc/self/fd/0", "/etc/passwd", "/root", "*", "[", "?", "$HOME", "`id`",
    "; ls", "{}", "%s", "%n%n", "\\", "cifar10", "mnist", "nosuchset", "cifar10/x", "cifar10:1.0.0",
    "resnet50", "resnet51", "basic", "bn", "digits", "original", "--no-such-option", "-x", "-h",
    "--json", "--dry-run", "--dry-run=1", "--epochs", "--epochs=", "--=3", "-e3", "--out=",
    "--config", "--resume", "steps", "minutes", "500 steps", "stop", "rollback", "--version",
]  # fmt: skip


def near_word(rng: random.Random, word: str) -> str:
    """Change a word a little."""
    i = rng.randrange(len(word) + 1)
    junk = "".join(chr(rng.choice((*range(1, 256), 0x2028, 0xFEFF, 0xDC80))) for _ in range(5))
    return rng.choice([
        word[:i], word[i:], word[:i] + word[i + 1 :], word[:i] + rng.choice(WORDS) + word[i:],
        word[:i] + junk + word[i:], word.upper(), word * 2, "=" + word, word + "=", "-" + word,
    ])  # fmt: skip


def change_words(
    rng: random.Random, words: list[str], known: dict[str, list[str]], odd: list[str]
) -> None:
    """Change a command line in one place."""
    option, values = rng.choice(list(known.items()))
    strange = rng.choice(odd)
    i, j = rng.randrange(len(words) + 1), rng.randrange(max(1, len(words)))
    kind = rng.randrange(14)
    if kind < 3 and words:
        rng.choice((drop, double, swap))(rng, words)
    elif kind < 5 and words:
        words[j] = rng.choice((strange, near_word(rng, words[j])))
    elif kind < 6:
        words.insert(i, strange)
    elif kind < 7:
        words.append(option)
    elif kind < 9:
        words += [option, strange, *values[1:]]
    elif kind < 10:
        words.append(f"{option}={strange}")
    elif kind < 12:
        words[i:i] = [option, *values]
    else:
        words += [f"{option}={value}" for value in values] or [option]


def mangled(
    seed: str, lines: list[list[str]], known: dict[str, list[str]], odd: list[str]
) -> list[str]:
    """Return one of some command lines after one to four changes."""
    rng = random.Random(seed)
    words = list(rng.choice(lines))
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 4))):
        change_words(rng, words, known, odd)
    return [word.replace("\0", "") for word in words]


@pytest.fixture
def made(place, tmp_path, monkeypatch) -> dict[str, str]:
    def trained(*_, **__):
        raise AssertionError("a run was made, although it was to be dry")

    # Where they are used: a module that is first imported meanwhile would keep what it finds.
    for name in ("api.train_run", "fitting.create_run", "seeds.create_run"):
        monkeypatch.setattr(f"kerasnet.{name}", trained)
    return files(tmp_path)


def test_the_command_lines_are_valid(made, place):
    for words in [*([*FIT, *line] for line in fit_lines(made)), *light_lines(made), *HELP]:
        code, out, err, _, raised = call(words)
        assert (code, raised) == (0, ""), (words, err)
        assert out.strip()
    assert os.listdir(place) == []


def test_every_option_of_fit_is_changed(made):
    known = options("fit")
    assert {"--epochs", "--registry", "--learning-rate", "--json"} <= set(known)
    mutants = [mangled(f"fit/{i}", fit_lines(made), known, WORDS) for i in range(1000)]
    for option in known:
        given = [w for words in mutants for w in words if w.partition("=")[0] == option]
        assert len(given) >= 10, option


@pytest.mark.parametrize("number", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_mangled_command_lines(number, made, place, record_property):
    odd = [*WORDS, *made.values()]
    known, lines = options("fit"), fit_lines(made)
    tally = Tally()
    for i in range(number):
        words = [*FIT, *mangled(f"fit/{i}", lines, known, odd)]
        tally.add(f"fit/{i}", words)
        left = os.listdir(place)
        if left:
            tally.failures.append(f"fit/{i} {words!r}: left {left} in the working folder")
            break
    tally.check(record_property)
    assert tally.codes[0] > number // 20
    assert tally.codes[2] > number // 2


def test_mangled_light_commands(made, place, record_property):
    odd = [*WORDS, *made.values()]
    known = options("list", "show", "summary", "validate")
    tally = Tally()
    for i in range(300):
        rng = random.Random(f"light/{i}")
        line = rng.choice([*light_lines(made), *HELP])
        # The words that make a command harmless stay.
        kept = line if line in HELP else line[:1]
        words = [*kept, *mangled(f"light/{i}", [line[len(kept) :]], known, odd)]
        if rng.random() < 0.05:
            words = [rng.choice(["fti", "", "-", "LIST", "--", "\udcff", "x" * 10_000]), *words[1:]]
        tally.add(f"light/{i}", words)
    tally.check(record_property)
    assert os.listdir(place) == []


def test_a_dry_run_loads_neither_tensorflow_nor_keras(tmp_path):
    code = (
        "import sys\n"
        "from kerasnet.cli import main\n"
        "try: main(['fit', 'resnet8', '--dataset', 'digits', '--dry-run'])\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []

"""What the pages show is what happens."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_cli
from PIL import Image

from kerasnet.registry import load_registry

DOC = Path(__file__).parents[1] / "docs" / "own-models.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOC.read_text(), re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    found = [text for kind, text in BLOCKS if kind == language]
    assert found, f"{DOC} has no block of {language}"
    return found


def commands(text: str, prompt: str = "") -> list[tuple[list[str], str]]:
    """Return the words of each command of a block, and what is printed below it."""
    parts = re.split(rf"^{re.escape(prompt)}kerasnet ", text, flags=re.MULTILINE)[1:]
    assert parts
    return [(shlex.split(part.split("\n", 1)[0]), part.split("\n", 1)[1]) for part in parts]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(blocks("yaml")[0])


def test_the_model_has_under_fifteen_lines():
    (text,) = blocks("yaml")
    assert len(text.splitlines()) < 15


def test_the_console_prints_what_the_page_shows(capsys):
    shown = [pair for text in blocks("console") for pair in commands(text, "$ ")]
    assert [words[0] for words, _ in shown] == ["validate", "summary", "diff"]
    for words, expected in shown:
        code, out, err = run_cli(capsys, *words)
        assert (code, err) == (0, "")
        if expected.endswith("…\n"):
            assert out.startswith(expected.removesuffix("…\n"))
        else:
            assert out == expected


def test_the_other_commands_of_the_page_are_understood(capsys):
    (fit, _), (schema, _) = [pair for text in blocks("sh") for pair in commands(text)]
    code, out, _ = run_cli(capsys, *fit, "--dry-run")
    assert code == 0
    assert "name: resnet14_narrow" in out
    code, out, _ = run_cli(capsys, *schema)
    assert code == 0
    (modeline,) = blocks("text")
    assert modeline.strip() in out
    assert Path(modeline.strip().split("$schema=")[1]).is_file()


def test_the_program_of_the_page_builds_the_model():
    (program,) = blocks("python")
    names: dict[str, object] = {}
    exec(program, names)
    assert names["model"].output_shape == (None, 100)
    assert names["model"].count_params() == 226_698 + 90 * (128 + 1)


@pytest.mark.slow
def test_the_model_of_the_page_is_trained(capsys):
    (fit, _), _ = [pair for text in blocks("sh") for pair in commands(text)]
    code, out, err = run_cli(capsys, *fit, "--epochs", "1", "--limit-train", "64", "--out", "run")
    assert code == 0, err
    assert "test accuracy" in out
    code, out, _ = run_cli(capsys, "diff", "resnet14_narrow", "run", "--registry", "mine.yaml")
    assert code == 0
    assert out == "no difference between the plans of resnet14_narrow and run\n"


def test_the_readme_s_program_names_what_is_in_a_picture(capsys):
    readme = (DOC.parents[1] / "README.md").read_text()
    (program,) = [text for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", readme,
                                                    re.DOTALL | re.MULTILINE)
                  if kind == "python" and "Image.open" in text]  # fmt: skip
    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(colours).save("cat.jpg")
    names: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), names)
    told, expected = names["told"][0], load_registry().datasets["cifar10"].class_names
    assert str(told.classes[0]) in capsys.readouterr().out
    (found,) = names["model"].predict(names["picture"], verbose=0)
    # Pictures are made smaller by two programs, which differ by a level at most.
    assert dict(told.classes) == pytest.approx(dict(zip(expected, found, strict=True)), abs=0.02)

"""A wheel carries what the package needs, and an empty environment with it works anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kerasnet.json_schema import KINDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, check=True, capture_output=True, cwd=ROOT)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_registry_spaces_cards_schemas_and_templates(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    spaces = {f"kerasnet/_data/tuning/{p.name}" for p in (ROOT / "tuning").glob("*.yaml")}
    assert spaces
    assert spaces <= names
    kept = ROOT / "results"
    cards = {f"kerasnet/_data/results/{p.relative_to(kept).as_posix()}"
             for p in kept.rglob("*") if p.is_file()}  # fmt: skip
    assert cards
    assert cards <= names
    assert {"kerasnet/_data/registry.yaml", "kerasnet/templates/report.html.j2"} <= names
    assert {f"kerasnet/schemas/{kind}.schema.json" for kind in KINDS} <= names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"kerasnet"}


@pytest.mark.parametrize(("words", "said"), [(["list"], "resnet50"), (["results", "--json"], "[")])
def test_light_commands_work_from_an_unpacked_wheel_in_any_folder(words, said, wheel, tmp_path):
    # An environment of its own, sharing only the dependencies' folder.
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = (
        "import sys, kerasnet\n"
        f"assert kerasnet.__file__.startswith({str(target)!r}), kerasnet.__file__\n"
        "from kerasnet.cli import main\n"
        f"main({words!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


@pytest.mark.slow
def test_wheel_in_an_empty_environment_trains(wheel, tmp_path):
    environment = tmp_path / "venv"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", str(environment)], check=True, capture_output=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [*uv, "pip", "install", "--python", str(python), str(wheel)],
        check=True,
        capture_output=True,
    )
    command = [
        str(environment / "bin" / "kerasnet"), "fit", "resnet8", "--dataset", "digits", "--epochs",
        "1", "--limit-train", "100", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()

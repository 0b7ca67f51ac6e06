"""What tests of several files are given."""

from __future__ import annotations

import shutil
import subprocess

import pytest

# Few tests that take long each: whoever comes to them last works alone at the end.
LONGEST = {
    "test_averaging", "test_budget", "test_finetune", "test_lr_find", "test_mixing", "test_oracles",
    "test_resume", "test_search_processes", "test_train", "test_tune",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)

"""Searches with keras-tuner in which every trial is a run folder."""

from kerasnet.tune.search import (
    Search,
    Trial,
    check_search,
    fit_command,
    make_tuner,
    search,
)
from kerasnet.tune.space import check_space, read_space

__all__ = [
    "Search", "Trial", "check_search", "check_space", "fit_command", "make_tuner", "read_space",
    "search",
]  # fmt: skip

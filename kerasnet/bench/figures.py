"""From what was timed to what is said: medians, spreads, paired ratios, and tables of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kerasnet.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

# A training step is the forward product and two of the same size backward, by the kernel and by the
# input; a multiply-accumulate is two operations.
OPERATIONS_PER_MAC = 3 * 2


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range over the median, 0 for a single value.

    The quartiles are interpolated between the values (`statistics.quantiles`, inclusive), so that
    one disturbed round out of five does not widen it.
    """
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def unrest(values: Sequence[float]) -> float:
    """Return by how much of the largest value the others fall short at most, 0…1."""
    return 1 - min(values) / max(values)


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours over theirs, round by round.

    Raises:
        ValueError: the rounds are not equally many.
    """
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over rounds of ours over theirs.

    What slows the whole machine for a round slows both, and leaves their ratio as it is.
    """
    return statistics.median(paired_ratios(ours, theirs))


def training_gflops(macs: int, images_per_second: float) -> float:
    """Return GFLOP/s of training, by `OPERATIONS_PER_MAC` and the MACs of one image."""
    return OPERATIONS_PER_MAC * macs * images_per_second / 1e9


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Fit y = slope · x + intercept by least squares.

    Returns:
        Slope, intercept, and R², the share of y's variance that the line explains; 1 where y does
        not vary.

    Raises:
        statistics.StatisticsError: there are fewer than two points, or x does not vary.
    """
    slope, intercept = statistics.linear_regression(x, y)
    left = sum((b - slope * a - intercept) ** 2 for a, b in zip(x, y, strict=True))
    centre = statistics.fmean(y)
    total = sum((b - centre) ** 2 for b in y)
    return slope, intercept, 1 - left / total if total else 1.0


def show(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()
) -> None:
    """Print a table: drawn on a terminal, plain lines elsewhere.

    Args:
        console: where to.
        header: the columns' names.
        rows: a cell a column.
        left: columns that hold words; the others are numbers, and right-aligned.
    """
    right = [name for name in header if name not in left]
    if not console.is_terminal:
        from kerasnet.summary import table

        say(console, table(header, rows, right))
        return
    from rich.table import Table
    from rich.text import Text

    drawn = Table()
    for name in header:
        drawn.add_column(Text(name), justify="right" if name in right else "left")
    for row in rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)

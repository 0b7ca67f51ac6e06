"""Figures of a search: where good values lie, and how the trials went.

Each function returns what `kerasnet.page.draw` does. Scores are validation accuracies: fractions
in the arguments, percentages in the pictures. matplotlib is imported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kerasnet import schema
from kerasnet.page import (
    COOL,
    INK,
    MUTED,
    PAPER,
    WARM,
    clean,
    draw,
    label_values,
    percent,
    round_values,
    shortened,
)
from kerasnet.tune.records import Search, Trial, short_names, shown_value

Curve = Sequence[tuple[int, float]]

AXES = 7  # fields of one row of parallel coordinates: more leave no room for their names
FIELDS = 64  # a space has no more
CHOICES = 12  # labels of a categorical axis; more would touch
ABSENT = -0.13  # where a parallel axis shows that a trial has no value or no score
_STEEP = 50  # numbers of a choice that span this ratio are drawn on a log axis


@dataclass(frozen=True)
class Axis:
    """A varied field as an axis: its values lie on it from 0 to 1.

    `low` and `high` are in the field's own unit; `choices` is empty where the field is a range.
    """

    path: str
    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether a score can be drawn against the field's values."""
        return all(real(value) is not None for value in self.choices)

    def place(self, value: Any) -> float | None:
        """Return where a value lies; None where it is absent or no value of this field."""
        if self.choices:
            keys = [_key(choice) for choice in self.choices]
            if value is None or _key(value) not in keys:
                return None
            return (keys.index(_key(value)) + 0.5) / len(keys)
        found = real(value)
        if found is None or (self.log and found <= 0):
            return None
        low, high, found = (
            math.log(x) if self.log else x for x in (self.low, self.high, found)
        )  # fmt: skip
        return 0.5 if high <= low else (found - low) / (high - low)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield the places of this axis that are labelled, and their labels."""
        if self.choices:
            every = math.ceil(len(self.choices) / CHOICES)
            values: Sequence[Any] = self.choices[::every]
        else:
            values = round_values(self.low, self.high, self.log)
        for value in values:
            place = self.place(value)
            if place is not None and -1e-9 <= place <= 1 + 1e-9:
                yield place, label(value)


def real(value: Any) -> float | None:
    """Return a number as a float that can be drawn; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value == 0 or 1e-100 < abs(value) < 1e100 else None


def label(value: Any) -> str:
    """Return a value in few letters."""
    return shortened(clean(shown_value(value)), 14)


def _key(value: Any) -> tuple[bool, Any]:
    return isinstance(value, bool), value  # True equals 1


def axes_of(space: schema.Space, trials: Sequence[Trial]) -> list[Axis]:
    """Return an axis for every field that a trial has a value of, those of the space first."""
    given: dict[str, list[Any]] = {path: [] for path in space.parameters}
    for trial in trials:
        for path, value in trial.values.items():
            if value is not None:
                given.setdefault(path, []).append(value)
    paths = [path for path, values in given.items() if values][:FIELDS]
    names = short_names(paths)
    return [_axis(p, clean(names[p]), space.parameters.get(p), given[p]) for p in paths]


def _axis(path: str, name: str, drawn: schema.Distribution | None, values: Sequence[Any]) -> Axis:
    numbers = [x for x in map(real, values) if x is not None]
    if isinstance(drawn, schema.Choice) or len(numbers) < len(values) or not numbers:
        known = drawn.names if isinstance(drawn, schema.Choice) else []
        # A search.json beside another search.yaml may hold values that the space does not.
        choices = {_key(value): value for value in [*known, *values]}
        return Axis(path, name, choices=tuple(choices.values())[: schema.MAX_VALUES])
    ends = [x for x in (real(drawn.min), real(drawn.max)) if x is not None] if drawn else []
    low, high = min([*numbers, *ends]), max([*numbers, *ends])
    log = drawn.log if drawn else False
    rate = path.rpartition(".")[2] == "learning_rate"
    return Axis(path, name, low, high, log=low > 0 and (log or rate))


# ---------------------------------------------------------------------------- where good values lie


def parallel(
    key: str, axes: Sequence[Axis], trials: Sequence[Trial], best: Trial | None
) -> dict[str, str]:
    """Draw each trial as a line through its values to its score, the best one on top."""
    scores = [t.val_accuracy for t in trials if t.val_accuracy is not None]
    score = _score_axis(scores)
    shown = [*axes, score]

    def paint(figure: Any) -> None:
        canvas = figure.add_subplot(xlim=(-0.45, len(axes) + 0.3), ylim=(ABSENT - 0.05, 1.1))
        canvas.set_axis_off()
        for trial in sorted(trials, key=lambda t: (_is(t, best), t.val_accuracy or 0.0)):
            _paint_line(canvas, shown, trial, _is(trial, best), _alpha(score, trial, len(trials)))
        _paint_axes(canvas, shown, trials)

    named = ", ".join(axis.name for axis in axes)
    told = f"Parallel coordinates of {len(trials)} trials over {named} and validation accuracy"
    ends = f", from {percent(min(scores))} to {percent(max(scores))}" if scores else ""
    return draw(key, f"{told}{ends}.", (9.8, 3.7), paint)


def _score_axis(scores: Sequence[float]) -> Axis:
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    if high - low < 1e-9:  # one score, or all the same
        low, high = max(0.0, low - 0.05), min(1.0, high + 0.05)
    return Axis("", "validation accuracy, %", 100 * low, 100 * high)


def _is(trial: Trial, best: Trial | None) -> bool:
    return best is not None and trial.trial == best.trial


def _alpha(score: Axis, trial: Trial, count: int) -> float:
    """Return how opaque a trial is drawn: the better, the more; fainter where there are many."""
    place = 0.0 if trial.val_accuracy is None else score.place(100 * trial.val_accuracy) or 0.0
    faint, steepness = (0.3, 2) if count <= 40 else (0.12, 5)
    return faint + (0.9 - faint) * place**steepness


def _paint_line(canvas: Any, axes: Sequence[Axis], trial: Trial, best: bool, alpha: float) -> None:
    places = [axis.place(trial.values.get(axis.path)) for axis in axes[:-1]]
    places.append(None if trial.val_accuracy is None else axes[-1].place(100 * trial.val_accuracy))
    heights = [ABSENT if place is None else place for place in places]
    look: dict[str, Any] = {"color": COOL, "alpha": alpha, "linewidth": 1.2}
    if best:
        look = {"color": WARM, "linewidth": 2.4, "zorder": 3}
    elif trial.val_accuracy is None:
        look = {"color": MUTED, "alpha": 0.7, "linewidth": 0.9, "dashes": (3, 3)}
    canvas.plot(range(len(axes)), heights, solid_joinstyle="round", **look)


def _paint_axes(canvas: Any, axes: Sequence[Axis], trials: Sequence[Trial]) -> None:
    behind = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    for x, axis in enumerate(axes):
        score = axis is axes[-1]
        canvas.plot([x, x], [0, 1], color=INK, linewidth=0.8, zorder=4)
        name = shortened(axis.name, 24) + (" (log)" if axis.log else "")
        canvas.text(x, 1.07, name, ha="center", va="bottom", weight="bold" if score else "normal")
        marks = list(axis.ticks())
        lacking = any(
            (t.val_accuracy is None) if score else axis.place(t.values.get(axis.path)) is None
            for t in trials
        )  # fmt: skip
        if lacking:
            marks.append((ABSENT, "no score" if score else "absent"))
        for place, text in marks:
            side = {"ha": "left", "x": x + 0.04} if score else {"ha": "right", "x": x - 0.04}
            canvas.plot([x - 0.012, x + 0.012], [place, place], color=INK, linewidth=0.8, zorder=4)
            canvas.text(y=place, s=text, va="center", color=MUTED, zorder=5, bbox=behind, **side)


def against(key: str, axis: Axis, search: Search, best: Trial | None, wide: bool) -> dict[str, str]:
    """Draw scores against a numeric field; trials without a score lie below the others."""
    points = [(x, t) for t in search.trials if (x := real(t.values.get(axis.path))) is not None]
    places = [x for x, _ in points] if axis.choices else [axis.low, axis.high]
    low, high = min(places), max(places)
    log = low > 0 and (axis.log or (bool(axis.choices) and high > _STEEP * low))

    def paint(figure: Any) -> None:
        canvas = figure.add_subplot(xlabel=shortened(axis.name, 40))
        if log:
            canvas.set_xscale("log")
        if low < high:
            margin = (high / low) ** 0.04 if log else 0.04 * (high - low)
            ends = (low / margin, high * margin) if log else (low - margin, high + margin)
            canvas.set_xlim(*ends)
            few = sorted(set(places)) if len(set(places)) <= CHOICES and axis.choices else None
            label_values(canvas.xaxis, few or round_values(low, high, log))
        _paint_scores(canvas, points, best)

    scored = [t for _, t in points if t.val_accuracy is not None]
    top = max(scored, key=lambda t: t.val_accuracy or 0.0, default=None)
    name = f"{axis.name}{' (log axis)' if log else ''}"
    told = f"Validation accuracy against {name}, {len(points)} trials"
    found = f"; highest at {label(top.values[axis.path])}" if top else "; none has a score"
    return draw(key, f"{told}{found}.", (9.8, 3.2) if wide else (4.4, 2.7), paint)


def _paint_scores(canvas: Any, points: Sequence[tuple[float, Trial]], best: Trial | None) -> None:
    """Mark (place, trial) pairs: by what became of the trial, with the range of its scores."""
    for x, trial in points:
        if trial.val_accuracy is None:
            continue
        y, colour = 100 * trial.val_accuracy, WARM if _is(trial, best) else COOL
        if len(trial.scores) > 1:
            ends = [100 * min(trial.scores), 100 * max(trial.scores)]
            canvas.plot([x, x], ends, color=colour, linewidth=1.0, alpha=0.6)
        inside = PAPER if trial.state != "finished" else colour
        size, order = (5.5, 4) if _is(trial, best) else (4.0, 3)
        canvas.plot(x, y, "o", ms=size, color=colour, mfc=inside, mew=1.0, zorder=order)
    if unscored := [(x, t) for x, t in points if t.val_accuracy is None]:
        _paint_unscored(canvas, unscored)


def _paint_unscored(canvas: Any, points: Sequence[tuple[float, Trial]]) -> None:
    """Mark trials without a score in a band of their own, below the lowest score."""
    if canvas.lines:
        low, high = canvas.get_ylim()
        canvas.set_yticks([tick for tick in canvas.get_yticks() if low <= tick <= high])
        canvas.set_ylim(low - 0.1 * (high - low), high)
    else:
        canvas.set_yticks([])
    for state, marker in (("diverged", "x"), ("failed", "+")):
        places = [x for x, t in points if t.state == state]
        if places:
            canvas.plot(places, [0.05] * len(places), marker, color=MUTED, ms=4.5, mew=1.1,
                        transform=canvas.get_xaxis_transform(), clip_on=False)  # fmt: skip


# ---------------------------------------------------------------------------- how the trials went


def curves(
    key: str, search: Search, found: Mapping[str, Curve], best: Trial | None
) -> dict[str, str]:
    """Draw the validation accuracy of each trial by epoch; `found` is by trial."""
    from_others = {t.trial: t.continues for t in search.trials if t.continues}
    drawn = {}
    for name, curve in found.items():
        before = found.get(from_others.get(name, ""), ())
        # The earlier epochs of a trial that goes on with another's are the other's.
        start = max((epoch for epoch, _ in before), default=-1)
        # The best one is drawn whole.
        whole = best is not None and name == best.trial
        own = [point for point in curve if whole or point[0] >= start]
        drawn[name] = own if own else list(curve)
    alpha = 0.75 if len(drawn) <= 20 else 0.45 if len(drawn) <= 60 else 0.25

    def paint(figure: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        canvas = figure.add_subplot(xlabel="epoch", ylabel="validation accuracy, %")
        canvas.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        for trial in sorted(search.trials, key=lambda t: _is(t, best)):
            if drawn.get(trial.trial):
                _paint_curve(canvas, drawn[trial.trial], trial, _is(trial, best), alpha)

    last = max((curve[-1][0] for curve in found.values() if curve), default=0)
    label = f"Learning curves of {len(found)} trials over {last} epochs"
    return draw(
        key, f"{label}; the best is trial {best.trial}." if best else f"{label}.", (9.8, 3.8), paint
    )


def _paint_curve(canvas: Any, curve: Curve, trial: Trial, best: bool, alpha: float) -> None:
    epochs, heights = [e for e, _ in curve], [100 * y for _, y in curve]
    colour = WARM if best else COOL if trial.state == "finished" else MUTED
    look = {"linewidth": 2.4, "zorder": 4} if best else {"linewidth": 1.2, "alpha": alpha}
    canvas.plot(epochs, heights, color=colour, solid_capstyle="round", **look)
    ends = {"stopped": "o", "diverged": "x", "failed": "+"}
    marker = ends.get(trial.state, "o" if len(curve) == 1 or best else "")
    if marker:
        inside = PAPER if trial.state == "stopped" else colour
        canvas.plot(epochs[-1], heights[-1], marker, color=colour, mfc=inside, mew=1.0,
                    ms=5.5 if best else 4.0, zorder=5)  # fmt: skip


def progress(key: str, search: Search, best: Trial | None) -> dict[str, str]:
    """Draw each trial's score in the order they were begun, and the best score so far."""
    points = [(float(i), t) for i, t in enumerate(search.trials, start=1)]
    so_far = best_so_far(search.trials)

    def paint(figure: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        canvas = figure.add_subplot(xlabel="trial", ylabel="validation accuracy, %")
        canvas.set_xlim(0.5, len(points) + 0.5)
        canvas.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        known = [math.nan if y is None else 100 * y for y in so_far]
        if any(y is not None for y in so_far):
            ends = [*(x for x, _ in points), len(points) + 0.5]
            canvas.plot(ends, [*known, known[-1]], color=WARM, drawstyle="steps-post")
        _paint_scores(canvas, points, best)

    last = so_far[-1] if so_far else None
    told = f"best so far {percent(last)}" if last is not None else "none has a score to choose by"
    return draw(
        key, f"Scores of {len(points)} trials in the order begun; {told}.", (9.8, 2.7), paint
    )


def best_so_far(trials: Sequence[Trial]) -> list[float | None]:
    """Return the score of the best of the first n trials, by the rule that `best_of` follows.

    It falls where a trial trained for longer takes the place of shorter ones.
    """
    longest, top, found = 0, None, []
    for trial in trials:
        if trial.state == "finished" and trial.val_accuracy is not None:
            if top is None or trial.epochs > longest:
                longest, top = trial.epochs, trial.val_accuracy
            elif trial.epochs == longest:
                top = max(top, trial.val_accuracy)
        found.append(top)
    return found

"""What kerasnet's one-file HTML pages are made of: figures, words, templates.

Figures are drawn by matplotlib into inline SVG whose colours are CSS variables; a page has no
script and loads nothing. matplotlib and Jinja2 are imported where they are used.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# ---------------------------------------------------------------------------- wording


def clean(name: str) -> str:
    """Replace what neither HTML nor SVG may hold: control characters and lone surrogates."""
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cs") else c for c in name)


def percent(share: float, digits: int = 2) -> str:
    """Return a fraction as a percentage, or a dash for NaN."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "–"


def number(value: float, digits: int = 4) -> str:
    """Return a number as people write it: 14,750,730, 0.0123, 1e-05, or a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def plural(count: int, noun: str) -> str:
    """Return `1 epoch` or `1,200 epochs`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shortened(name: str, length: int) -> str:
    """Leave out a long name's middle: those that share a beginning often differ at the end."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[-((length - 1) // 2) :]}"


# ---------------------------------------------------------------------------- drawing

# matplotlib knows no CSS, so it draws in these colours, and `_svg` puts the variables in their
# place: one picture for the light page, the dark one and the printed one.
INK, MUTED, RULE, COOL, WARM, PAPER = (f"#0{i}0{i}0{i}" for i in range(1, 7))
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    COOL: "var(--cool)",
    WARM: "var(--warm)",
    PAPER: "var(--paper)",
}
_SETTINGS = {
    "svg.hashsalt": "kerasnet",  # ids would be random otherwise
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own font
    "font.size": 8.5,
    "axes.linewidth": 0.7,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.0,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$x$"
}
_TAG = re.compile(r"<[^<>]*>")  # matplotlib escapes both brackets in text and in attributes
_ID = re.compile(r'((?<=\s)id="|url\(#|(?:xlink:)?href="#)')


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Draw with matplotlib's defaults and ours, whatever the user's matplotlibrc says."""
    import matplotlib as mpl

    defaults = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith("backend")}
    with warnings.catch_warnings(), mpl.rc_context({**defaults, **_SETTINGS}):
        # A glyph that matplotlib's font lacks is no loss: the browser draws the text.
        warnings.simplefilter("ignore", UserWarning)
        yield


def draw(
    key: str, label: str, size: tuple[float, float], paint: Callable[[Any], None]
) -> dict[str, str]:
    """Paint a figure of `size` inches; return its SVG and its description for screen readers.

    Args:
        key: what the ids inside start with; no two figures of a page may share it.
        label: says in words what the picture shows.
        size: width and height; an inch becomes some 95 pixels on the page.
        paint: is given the empty `matplotlib.figure.Figure`.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with _style():
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return {"key": key, "label": label, "svg": _svg(out.getvalue(), key)}


def round_values(low: float, high: float, log: bool) -> list[float]:
    """Return some four to seven round values between two bounds, for the ticks of an axis."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if log:
        few = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
        places = LogLocator(subs=few, numticks=7).tick_values(low, high)
    else:
        places = MaxNLocator(nbins=5).tick_values(low, high)
    slack = 1e-6 * (low if log else high - low)
    found = [float(x) for x in places if low - slack <= x <= high + slack]
    return found if len(found) > 1 else [low, high]


def label_values(axis: Any, values: Sequence[float]) -> None:
    """Label a matplotlib axis at these values, in plain text.

    On a log axis matplotlib would write formulas, which the pages' figures do not read as such.
    """
    axis.set_ticks(values, [number(value) for value in values])
    axis.set_ticks([], minor=True)


def _svg(text: str, key: str) -> str:
    """Make matplotlib's SVG document part of a page: no outside names, own ids, CSS colours."""
    opening = re.search(r"<svg[^<>]*>", text)
    assert opening is not None, "matplotlib writes an svg element"
    box = re.search(r'viewBox="[-0-9. ]+"', opening[0])
    assert box is not None, "matplotlib writes a viewBox"
    body = text[opening.end() : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    # Its style sheet says `* {...}`, which would be taken to mean the whole page.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", body, flags=re.DOTALL)

    def adapt(match: re.Match[str]) -> str:
        tag = _ID.sub(lambda m: f"{m[1].removeprefix('xlink:')}{key}-", match[0])
        for colour, variable in VARIABLES.items():
            tag = tag.replace(colour, variable)
        return tag

    return f'<svg {box[0]} aria-hidden="true" focusable="false">{_TAG.sub(adapt, body)}</svg>'


# ---------------------------------------------------------------------------- templates


def render(template: str, **context: Any) -> str:
    """Fill in one of kerasnet's templates; every value is escaped unless the template says not."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kerasnet", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**context)

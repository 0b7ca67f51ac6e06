"""What the commands have in common on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def example(*lines: str) -> str:
    """Return command lines as the last part of a command's help."""
    # \b keeps the help formatter from joining lines.
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def say(console: Console, text: str, **more: Any) -> None:
    """Print a text as it is: without markup, colours of its own, or breaks within a line.

    Args:
        console: where to.
        text: what may come from a stranger, such as a path.
        more: as for `rich.console.Console.print`, such as `style`.
    """
    console.print(text, highlight=False, markup=False, soft_wrap=True, **more)

"""Options that several commands have, and what their texts stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from kerasnet.errors import BadInputError

RegistryOption = Annotated[
    str | None, typer.Option("--registry", metavar="FILE", help="YAML laid over the built-in one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EndJsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object at the end; progress to stderr.")
]
DataDirOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Where the data are looked for first; then $KERASNET_DATA_DIR, $TFDS_DATA_DIR, "
        "~/tensorflow_datasets and ~/.keras/datasets.",
    ),
]
RecipeOption = Annotated[
    str | None, typer.Option(help="How to train; default: the model's for the data set.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(metavar="auto|float32|mixed_bfloat16|mixed_float16", help="[default: auto]"),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, max=2**31 - 1, help="Makes a run repeatable. [default: 0]")
]
LimitTrainOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Train on N images only.")
]
InputSizeOption = Annotated[
    str | None,
    typer.Option(metavar="N|HxW", help="Bring images to this size. [default: the model's]"),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(metavar="FILE|pretrained", help="Start from these; formats as for convert."),
]
ResetHeadOption = Annotated[
    bool, typer.Option("--reset-head", help="With --weights: begin the classifier anew.")
]
FreezeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PART,…",
        help="With --weights: do not train stem, stage1, …, neck or head, as named.",
    ),
]


def input_shape(text: str | None, default: Sequence[int], most: int = 3) -> list[int]:
    """Return the height, width and channels that `--input-size` gives.

    Args:
        text: such as `64`, `64x48` or `64x48x3`.
        default: what holds where it gives none.
        most: how many numbers it may have.

    Raises:
        BadInputError: it is none of these, or too large.
    """
    from kerasnet.schema import MAX_CHANNELS, MAX_SIDE

    if text is None:
        return list(default)
    parts = text.lower().replace("×", "x").split("x")
    if not all(p.isascii() and p.isdigit() for p in parts) or not 1 <= len(parts) <= most:
        known = "64, 64x48 or 64x48x3" if most == 3 else "64 or 64x48"
        raise BadInputError(f"--input-size takes {known}, not '{text}'")
    sizes = [int(p[:9]) for p in parts]
    shape = {1: [*sizes * 2, default[2]], 2: [*sizes, default[2]], 3: sizes}[len(sizes)]
    if not (all(1 <= n <= MAX_SIDE for n in shape[:2]) and 1 <= shape[2] <= MAX_CHANNELS):
        raise BadInputError(f"--input-size: sides lie in 1…{MAX_SIDE}; received '{text}'")
    return shape


def image_size(text: str | None) -> tuple[int, int] | None:
    """Return the height and width that `--input-size` gives a data set's images.

    Raises:
        BadInputError: as `input_shape`.
    """
    if text is None:
        return None
    # The data say how many channels there are.
    height, width, _ = input_shape(text, (0, 0, 1), most=2)
    return height, width

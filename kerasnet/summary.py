"""Plans as tables and in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from kerasnet import schema
from kerasnet.plan import Layer, Plan, format_shape, millions

Depth = Literal["stage", "block", "layer"]
Row = tuple[str, ...]

LAYER_HEADER = (
    "layer",
    "type",
    "output",
    "kernel",
    "stride",
    "padding",
    "params",
    "MACs",
    "inputs",
)
GROUP_HEADER = ("", "layers", "output", "params", "MACs")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Lay out rows in columns under a header; columns named in `right` are right-aligned."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def lay(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(line, widths, header, strict=True)
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("─" * width for width in widths)
    return "\n".join([lay(lines[0]), rule, *map(lay, lines[1:])])


def layer_table(plan: Plan, depth: Depth = "layer") -> str:
    """Return a plan's table with totals, a row a layer, block or stage."""
    if depth == "layer":
        rows = [_layer_row(layer) for layer in plan.layers]
        right = ("kernel", "stride", "padding", "params", "MACs")
        body = table(LAYER_HEADER, rows, right)
    else:
        rows = [_group_row(name, group) for name, group in _groups(plan, depth)]
        body = table((depth, *GROUP_HEADER[1:]), rows, ("layers", "params", "MACs"))
    return f"{plan.name}, input {format_shape(plan.input_shape)}\n\n{body}\n\n{totals(plan)}"


def totals(plan: Plan) -> str:
    """Return the sentence that closes a table."""
    params = plan.params
    return (
        f"parameters: {params['total']:,} ({params['trainable']:,} trainable, "
        f"{params['non_trainable']:,} not)\nMACs an image: {plan.macs:,} ({millions(plan.macs)})"
    )


def _layer_row(layer: Layer) -> Row:
    numbers = ["" if v is None else str(v) for v in (layer.kernel, layer.stride, layer.padding)]
    return (
        layer.name,
        layer.type,
        format_shape(layer.output_shape),
        *numbers,
        f"{layer.params:,}",
        f"{layer.macs:,}",
        ", ".join(layer.inputs),
    )


def _groups(plan: Plan, depth: Depth) -> list[tuple[str, list[Layer]]]:
    """Return runs of layers that share a stage, or a stage and a block."""
    groups: list[tuple[str, list[Layer]]] = []
    for layer in plan.layers:
        name = layer.stage or layer.name
        if depth == "block" and layer.block:
            name = f"{name}_{layer.block}"
        elif depth == "block" and groups and groups[-1][0].startswith(f"{name}_"):
            name = f"{name}_after"
        if groups and groups[-1][0] == name:
            groups[-1][1].append(layer)
        else:
            groups.append((name, [layer]))
    return groups


def _group_row(name: str, layers: list[Layer]) -> Row:
    params, macs = sum(x.params for x in layers), sum(x.macs for x in layers)
    return name, str(len(layers)), format_shape(layers[-1].output_shape), f"{params:,}", f"{macs:,}"


def overview(plans: Iterable[Plan]) -> str:
    """Return one table with every plan's stages and totals."""
    rows = []
    for plan in plans:
        stages = [
            f"{name} {format_shape(group[-1].output_shape)}"
            for name, group in _groups(plan, "stage")
            if name != "input"
        ]
        params = plan.params
        rows.append(
            (plan.name, format_shape(plan.input_shape), f"{params['total']:,}",
             f"{params['trainable']:,}", f"{plan.macs:,}", " → ".join(stages))
        )  # fmt: skip
    header = ("model", "input", "params", "trainable", "MACs", "stages")
    return table(header, rows, ("params", "trainable", "MACs"))


# ---------------------------------------------------------------------------- in words


def explain(plan: Plan) -> str:
    """Write the arithmetic behind every spatial size of a plan, ⌊(n + 2p - k)/s⌋ + 1, in words."""
    shapes = {layer.name: layer.output_shape for layer in plan.layers}
    lines = [
        f"{plan.name} on {format_shape(plan.input_shape)} (height × width × channels)",
        "",
        "A window of size k slides over a side of n pixels in steps of s (the stride), after p",
        "pixels were added on either end (the padding). It fits ⌊(n + 2p - k)/s⌋ + 1 times: once",
        "at the start, and once more for every whole step that is left. ⌊ ⌋ rounds down.",
    ]
    part = None
    for layer in plan.layers[1:]:
        if layer.stage != part:
            part = layer.stage
            lines += ["", f"{part}:"]
        said = _explain_layer(layer, [shapes[name] for name in layer.inputs])
        if said:
            lines.append(f"  {layer.name}: {said}")
    return "\n".join(lines)


def _explain_layer(layer: Layer, inputs: list[tuple[int, ...]]) -> str:
    """Return what happens to the shape, or nothing where it stays as it is."""
    before, after = inputs[0], layer.output_shape
    if layer.kernel is not None:
        what = {"Conv2D": "convolution", "MaxPooling2D": "maximum", "AveragePooling2D": "mean"}
        size = f"{layer.kernel}×{layer.kernel} {what[layer.type]}"
        sides = [f"{_formula(n, layer)} = {m}" for n, m in zip(before[:2], after[:2], strict=True)]
        arithmetic = sides[0] if sides[0] == sides[1] else " high, ".join(sides) + " wide"
        channels = f"{before[2]} → {after[2]} channels" if layer.type == "Conv2D" else ""
        note = f"; {channels}" if channels and before[2] != after[2] else ""
        return f"{size}, {arithmetic}; {format_shape(before)} → {format_shape(after)}{note}"
    if layer.type == "Add":
        return f"branch + shortcut, both {format_shape(after)}"
    if layer.type.startswith("Global"):
        over = "mean" if "Average" in layer.type else "maximum"
        return (
            f"{over} over all {before[0]}×{before[1]} places; {format_shape(before)} → {after[0]}"
        )
    if layer.type == "Flatten":
        return f"{' · '.join(map(str, before))} = {after[0]} numbers in a row"
    if layer.type == "Dense":
        return f"every output from every input; {before[0]} → {after[0]}"
    if layer.type == "Rescaling":
        return f"every value times {layer.options['scale']}"
    if layer.type == "ZeroPadding2D":
        added = "channels" if before[:2] == after[:2] else "rows and columns on each side"
        return f"zero {added} added; {format_shape(before)} → {format_shape(after)}"
    return ""


def _formula(n: int, layer: Layer) -> str:
    p, k, s = layer.padding, layer.kernel, layer.stride
    return f"⌊({n} + 2·{p} - {k})/{s}⌋ + 1"


# ---------------------------------------------------------------------------- registries


def model_facts(plan: Plan, model: schema.Model, pretrained: list[str]) -> dict[str, Any]:
    """Return a model's row of `kerasnet list --json`; `pretrained` has data sets."""
    published = model.published
    return {
        "name": plan.name,
        "params": plan.params["total"],
        "macs": plan.macs,
        "input": list(plan.input_shape),
        "origin": model.origin,
        "published": None if published is None else published.model_dump(mode="json"),
        "pretrained": pretrained,
    }


def model_table(facts: Iterable[dict[str, Any]]) -> str:
    """Return the table of `kerasnet list`; published test accuracies are in percent."""
    rows = [
        (
            f["name"],
            millions(f["params"]),
            millions(f["macs"]),
            format_shape(f["input"]),
            _published(f["published"]),
            ", ".join(f["pretrained"]),
            f["origin"],
        )
        for f in facts
    ]
    header = ("model", "params", "MACs", "input", "published", "pretrained", "origin")
    return table(header, rows, ("params", "MACs"))


def _published(found: dict[str, Any] | None) -> str:
    return f"{found['top1']:.2f} % {found['dataset']}" if found else ""

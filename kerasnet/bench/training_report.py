"""What `kerasnet bench train` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from kerasnet.bench.figures import show
from kerasnet.terminal import say

HEADER = ("", "images/s", "spread", "GFLOP/s", "of peak", "peak MiB", "first step", "kerasnet is")

_RESTLESS = 0.15


def report(console: Console, result: Mapping[str, Any]) -> None:
    """Print the table and what its columns mean."""
    say(console, f"{result['model']}, batch {result['batch']}, recipe {result['recipe']}, "
                 f"{result['rounds']} rounds")  # fmt: skip
    show(console, HEADER, [_row(x, result["ratios"]) for x in result["results"]], left=("",))
    for framework, rates in result["gemm_peak"].items():
        said = ", ".join(f"{dtype} {rate:,.0f} GFLOP/s" for dtype, rate in rates.items())
        say(console, f"largest matrix-product rate by {framework}: {said}")
    if result["machine_unrest"] > _RESTLESS:
        say(
            console,
            f"the machine was busy: matrix products were up to {result['machine_unrest']:.0%} "
            "slower in some rounds than in others.\nTrust the ratios only after more rounds, on a "
            "quieter machine",
        )
    say(
        console,
        f"input: {result['input_bound_share']:.1%} of a step of {result['kerasnet']} goes away "
        "with ready batches;\n"
        f"the pipeline alone takes {result['pipeline_share']:.2%} of the time of a step\n"
        "images/s: median over rounds; spread: interquartile range over median; GFLOP/s: 3 × 2 × "
        "MACs × images/s\n(forward and two backward products); of peak: over the highest "
        "matrix-product rate of that precision;\nkerasnet is: "
        f"{result['kerasnet']} over this one, the median of each round's ratio. Peers get ready "
        "batches;\nkerasnet's memory includes the images (150 MiB for 50,000 of 32×32×3).",
    )


def _row(entry: Mapping[str, Any], ratios: Mapping[str, float]) -> tuple[str, ...]:
    ratio = ratios.get(entry["name"])
    return (
        entry["name"],
        f"{entry['images_per_second']:,.1f}",
        f"{entry['spread']:.1%}",
        f"{entry['gflops']:,.0f}",
        f"{entry['share_of_peak']:.0%}",
        f"{entry['peak_memory_bytes'] / 2**20:,.0f}",
        f"{entry['start_seconds']:.1f} s",
        f"{ratio:.2f}×" if ratio else "",
    )

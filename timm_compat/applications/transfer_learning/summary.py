"""From curves over seeds to figures: accuracy at the end, cost, and what it took to come as far as another way."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from timm_compat.applications.transfer_learning.curve import Curve
from timm_compat.applications.transfer_learning.sections import ADAPTERS, CHEAP_HEAD, START, USUAL
from timm_compat.table import markdown_table, spread_text

Ways = Mapping[str, Sequence[Curve]]  # by name, one curve a seed
GIGA, MEBI = 1e9, 2**20
QUANTITIES = ("steps", "seconds", "flops")
_COSTS = ["accuracy", "GFLOP", "seconds", "peak MiB", "fewer FLOP", "fewer FLOP for this accuracy"]
HEADINGS = {
    START: ["start", "accuracy at step 0", "at the end", "steps to the usual end", "seconds", "fewer steps"],
    CHEAP_HEAD: ["head", *_COSTS],
    ADAPTERS: ["what learns", *_COSTS],
}


def spent(curves: Sequence[Curve], levels: Sequence[float], quantity: str) -> list[float]:
    """What every seed spent until it first measured at least a level; infinity where it never did.

    Args:
        curves: one a seed.
        levels: one a seed, accuracies.
        quantity: "steps", "seconds" or "flops".
    """
    places = [curve.reached(level) for curve, level in zip(curves, levels, strict=True)]
    pairs = zip(curves, places, strict=True)
    return [math.inf if place is None else float(getattr(curve, quantity)[place]) for curve, place in pairs]


def ends(curves: Sequence[Curve]) -> list[float]:
    """Accuracy at the end, of every seed."""
    return [curve.accuracy[-1] for curve in curves]


def times_fewer(usual: Sequence[float], other: Sequence[float]) -> float:
    """The mean of the one over the mean of the other; infinite where the other spent nothing, NaN where both are."""
    above, below = sum(usual), sum(other)
    if math.isinf(above) and math.isinf(below):
        return math.nan
    return above / below if below else math.inf


def section_table(section: str, ways: Ways) -> str:
    """Markdown: a row a way, mean ± standard deviation over seeds."""
    usual = ways[USUAL[section]]
    row = _start_row if section == START else _cost_row
    return markdown_table([HEADINGS[section], *([name, *row(found, usual)] for name, found in ways.items())])


def level_table(ways: Ways, levels: Sequence[float]) -> str:
    """Markdown: steps to given accuracies."""
    lines = [["steps to accuracy", *(f"{level:g}" for level in levels)]]
    for name, found in ways.items():
        if len(found[0].steps) > 1:
            lines.append([name, *(_spread(spent(found, [level] * len(found), "steps"), 0) for level in levels)])
    return markdown_table(lines)


def figures(section: str, ways: Ways) -> dict[str, Any]:
    """JSON values by way: of every seed, at the end and where the usual way's end was reached (null: never)."""
    levels = ends(ways[USUAL[section]])
    return {
        name: {
            "accuracy_at_start": [curve.accuracy[0] for curve in found],
            "accuracy": ends(found),
            **{quantity: [getattr(curve, quantity)[-1] for curve in found] for quantity in QUANTITIES},
            "peak_bytes": [curve.peak_bytes for curve in found],
            "to_the_usual_end": {
                quantity: [None if math.isinf(value) else value for value in spent(found, levels, quantity)]
                for quantity in QUANTITIES
            },
        }
        for name, found in ways.items()
    }


def _start_row(found: Sequence[Curve], usual: Sequence[Curve]) -> list[str]:
    at_start = spread_text([curve.accuracy[0] for curve in found])
    if len(found[0].steps) == 1:
        return [at_start, "", "", "", ""]
    levels = ends(usual)
    steps = [spent(curves, levels, "steps") for curves in (usual, found)]
    seconds = _spread(spent(found, levels, "seconds"), 1)
    return [at_start, spread_text(ends(found)), _spread(steps[1], 0), seconds, _times(*steps)]


def _cost_row(found: Sequence[Curve], usual: Sequence[Curve]) -> list[str]:
    flops = [[curve.flops[-1] for curve in curves] for curves in (usual, found)]
    return [
        spread_text(ends(found)),
        spread_text([value / GIGA for value in flops[1]], 2),
        spread_text([curve.seconds[-1] for curve in found], 1),
        spread_text([curve.peak_bytes / MEBI for curve in found], 1),
        _times(*flops),
        _times(spent(usual, ends(found), "flops"), spent(found, ends(found), "flops")),
    ]


def _spread(values: Sequence[float], digits: int) -> str:
    known = [value for value in values if not math.isinf(value)]
    if not known:
        return "never"
    text = spread_text(known, digits)
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"


def _times(usual: Sequence[float], other: Sequence[float]) -> str:
    if any(map(math.isinf, other)):
        return "never"
    if any(map(math.isinf, usual)):
        return "the usual way never"
    times = times_fewer(usual, other)
    return "all of them" if math.isinf(times) else f"{times:.1f} x"

"""From the records of all seeds to tables, JSON values and pictures: of exchanged heads, and of an upgrade."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from timm_compat._extras import require
from timm_compat.evaluation.matrix import RecombinationMatrix
from timm_compat.evaluation.plots import COLOURS, MARKS, bars, side_by_side
from timm_compat.evaluation.scores import POINTS, Array, compatibility_cost, update_gain
from timm_compat.evaluation.seeds import MatrixOverSeeds, over_seeds
from timm_compat.experiments.result import Cell, Record, way_table
from timm_compat.experiments.transfer.recipe import FIGURES, TRANSFER_WAYS, UPGRADE_WAYS
from timm_compat.table import markdown_table, spread_text

UPGRADE_INCHES = (11, 4.2)

Records = Sequence[Record]  # of one way, one a seed
Ways = Mapping[str, Records]


def matrix_of(records: Records) -> MatrixOverSeeds:
    """Every extractor under every head, of one way."""
    return over_seeds(_matrices(records))


def _transfer_tables(ways: Ways) -> dict[str, str]:
    titled = {TRANSFER_WAYS[way]: records for way, records in ways.items()}
    columns: dict[str, Cell] = {
        "own head": _own,
        "other heads": _other,
        "labels of a head's task": partial(_mean_text, "labels"),
        "seconds": partial(_mean_text, "seconds"),
    }
    tables = {f"Heads on other architectures, chance {_chance(ways):.3f}": way_table("way", titled, columns)}
    return tables | {title[:1].upper() + title[1:]: _matrix_table(records) for title, records in titled.items()}


def _transfer_note(ways: Ways) -> str:
    """How heads do on other extractors, by way."""
    found = [f"{TRANSFER_WAYS[way]} {_other(records)}" for way, records in ways.items()]
    own = [f"{TRANSFER_WAYS[way]} {_own(ways[way])}" for way in ways if way in ("apart", "one_space")]
    ending = f"; on their own, {', '.join(own)}" if own else ""
    return f"Heads on other architectures, chance {_chance(ways):.3f}: {', '.join(found)}{ending}."


def _transfer_numbers(ways: Ways) -> dict[str, Any]:
    """JSON values by way."""
    found = {way: matrix_of(records).to_dict() for way, records in ways.items()}
    for key in ("labels", "seconds"):
        for way, records in ways.items():
            found[way][key] = [record[key] for record in records]
    return found


def _transfer_picture(ways: Ways) -> Any:
    return side_by_side({TRANSFER_WAYS[way]: matrix_of(records) for way, records in ways.items()})


def gaps(values: Array, native: Any, axis: int) -> Array:
    """Points by which exchanged pairs exceed own ones, of accuracies (seeds, rows, columns).

    Axis 2 takes the mean over an extractor's heads, (seeds, rows); axis 1 over a head's extractors, (seeds, columns).
    """
    others, own = np.where(native, np.nan, values), np.where(native, values, np.nan)
    means = (np.ma.masked_invalid(found).mean(axis=axis) for found in (others, own))
    over, under = (np.ma.filled(mean, np.nan) for mean in means)
    result: Array = POINTS * (over - under)
    return result


def _matrix_table(records: Records) -> str:
    """A matrix, own pairs in bold, with the points that exchanged pairs lie over (or under) own ones."""
    matrices, overall = _matrices(records), matrix_of(records)
    first, values = matrices[0], np.stack([matrix.accuracy for matrix in matrices])
    lines = [["extractor \\ head", *first.columns, "other heads - own"]]
    by_row, by_column = gaps(values, first.native, 2), gaps(values, first.native, 1)
    for i, name in enumerate(first.rows):
        cells = [_cell(values[:, i, j], bool(first.native[i, j])) for j in range(len(first.columns))]
        lines.append([name, *cells, _points(by_row[:, i])])
    total = POINTS * (overall.recombined_accuracy - overall.native_accuracy)
    lines.append(["other extractors - own", *(_points(gap) for gap in by_column.T), _points(total)])
    return markdown_table(lines)


def _matrices(records: Records) -> list[RecombinationMatrix]:
    return [
        RecombinationMatrix(
            accuracy=np.array(found["accuracy"], dtype=np.float64),  # null becomes NaN
            rows=tuple(found["rows"]),
            columns=tuple(found["columns"]),
            native=np.array(found["native"], dtype=bool),
            chance=np.array(found["chance"]),
            counts=tuple(found["counts"]),
        )
        for found in (record["matrix"] for record in records)
    ]


def _chance(ways: Ways) -> float:
    return float(np.mean(_matrices(next(iter(ways.values())))[0].chance))


def _own(records: Records) -> str:
    return _known_text(matrix_of(records).native_accuracy)


def _other(records: Records) -> str:
    return _known_text(matrix_of(records).recombined_accuracy)


def _mean_text(key: str, records: Records) -> str:
    return f"{np.mean([record[key] for record in records]):,.0f}"


def _cell(values: Array, own: bool) -> str:
    return f"**{_known_text(values)}**" if own else _known_text(values)


def _points(values: Array) -> str:
    return _known_text(values, digits=1)


def _known_text(values: Array, digits: int = 3) -> str:
    """Of the seeds that could measure it: a network cannot run under a head that reads another number of features."""
    return spread_text([value for value in values.tolist() if not math.isnan(value)], digits)


def values_of(records: Records, column: str) -> list[float]:
    """One number a seed of a way to upgrade, see ``ClassifierTransferResult.values``."""
    return [value for record in records if not math.isnan(value := _value(record, column))]


def _upgrade_tables(ways: Ways) -> dict[str, str]:
    """Two tables: the old heads on the new extractor, and the new network's own task."""
    heads, titled = _heads(ways), {UPGRADE_WAYS[way]: records for way, records in ways.items()}
    columns = {f"head {name}": partial(_spread, name) for name in heads}
    columns |= {f"update gain {name}": partial(_spread, f"gain {name}") for name in heads}
    columns |= {"negative flips": partial(_spread, "flips"), "labels of old tasks": partial(_mean_text, "labels")}
    before = {f"head {name}": spread_text(_of(ways, "old")[name]) for name in heads}
    own = {"new head": "own", "its new classes": "own_new_classes", "compatibility cost": "cost"}
    own_columns = {title: partial(_spread, key) for title, key in {**own, "its negative flips": "own_flips"}.items()}
    return {
        "Old heads on the new extractor": way_table("way", titled, columns, first={"old extractor": before}),
        "The new head on it": way_table("way", titled, {**own_columns, "seconds": partial(_mean_text, "seconds")}),
    }


def _upgrade_note(ways: Ways) -> str:
    """How the old heads do on the new extractor, by way."""
    old = spread_text([_mean(record["old"].values()) for record in next(iter(ways.values()))])
    found = [f"{UPGRADE_WAYS[way]} {_spread('cross', records)}" for way, records in ways.items()]
    return f"Old heads on the new extractor: {', '.join(found)}; on the old one {old}."


def _upgrade_numbers(ways: Ways) -> dict[str, Any]:
    """JSON values: by way one number a seed."""
    found = {way: {key: values_of(ways[way], key) for key in (*_heads(ways), *FIGURES)} for way in ways}
    return {"old": _of(ways, "old"), "ceiling": _of(ways, "ceiling"), "ways": found}


def _upgrade_picture(ways: Ways) -> Any:
    """Update gain against compatibility cost, and negative flips; means over seeds with their deviations."""
    plt = require("matplotlib.pyplot", "plots")
    figure, (left, right) = plt.subplots(1, 2, figsize=UPGRADE_INCHES, layout="constrained")
    for number, (way, records) in enumerate(ways.items()):
        _point(left, UPGRADE_WAYS[way], values_of(records, "gain"), values_of(records, "cost"), number)
    left.axhline(0, color="#444444", linestyle=":", linewidth=1.2)
    left.set(xlabel="compatibility cost (accuracy)", ylabel="update gain of the old heads")
    if left.get_legend_handles_labels()[0]:  # no update gain is told where the new extractor is no better
        left.legend(loc="best")
    flips = {UPGRADE_WAYS[way]: found for way in ways if (found := values_of(ways[way], "flips"))}
    means = {name: float(np.mean(found)) for name, found in flips.items()}
    spreads = {name: (min(found), max(found)) for name, found in flips.items()}
    if means:
        bars(means, intervals=spreads, ylabel="negative flips of the old heads", ax=right)
    return figure


def _point(axis: Any, name: str, gain: Sequence[float], cost: Sequence[float], number: int) -> None:
    if not gain or not cost:
        return
    spread = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in (gain, cost)]
    style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)], "linestyle": ""}
    axis.errorbar(np.mean(cost), np.mean(gain), yerr=spread[0], xerr=spread[1], label=name, **style)


def _heads(ways: Ways) -> list[str]:
    return list(next(iter(ways.values()))[0]["old"])


def _of(ways: Ways, key: str) -> dict[str, list[float]]:
    """What no way changes, one number a seed by old head."""
    records = next(iter(ways.values()))
    found = {name: [record[key].get(name) for record in records] for name in _heads(ways)}
    return {name: [value for value in values if value is not None] for name, values in found.items()}


def _spread(column: str, records: Records) -> str:
    return spread_text(values_of(records, column))


def _value(record: Record, column: str) -> float:
    if column == "cost":
        return compatibility_cost(record["alone"], record["own"])
    if column == "gain" or column.startswith("gain "):
        name = column.removeprefix("gain").strip()
        return _gain(record, [name] if name else list(record["old"]))
    if column in ("cross", "flips"):
        return _mean(record[column].values())
    value = record["cross"].get(column) if column in record["old"] else record[column]
    return math.nan if value is None else float(value)


def _gain(record: Record, asked: Sequence[str]) -> float:
    known = [record[key] for key in ("cross", "old", "ceiling")]
    names = [name for name in asked if all(found.get(name) is not None for found in known)]
    if not names:
        return math.nan
    new, old, best = (_mean(record[key][name] for name in names) for key in ("cross", "old", "ceiling"))
    return update_gain(new, old, best)


def _mean(values: Any) -> float:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else math.nan


class Shown(NamedTuple):
    """What is shown of the records of one part, by way."""

    tables: Callable[[Ways], dict[str, str]]
    note: Callable[[Ways], str]
    numbers: Callable[[Ways], dict[str, Any]]
    picture: Callable[[Ways], Any]


TRANSFER = Shown(_transfer_tables, _transfer_note, _transfer_numbers, _transfer_picture)
UPGRADE = Shown(_upgrade_tables, _upgrade_note, _upgrade_numbers, _upgrade_picture)

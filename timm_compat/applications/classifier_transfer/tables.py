"""From the results of all seeds to tables and JSON values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from timm_compat.applications.classifier_transfer.recipe import TRANSFER_WAYS, UPGRADE_WAYS
from timm_compat.evaluation.matrix import RecombinationMatrix
from timm_compat.evaluation.scores import POINTS, Array, compatibility_cost, update_gain
from timm_compat.evaluation.seeds import MatrixOverSeeds, over_seeds
from timm_compat.table import markdown_table, spread_text

TRANSFER_TITLES = dict(
    zip(
        TRANSFER_WAYS,
        ("trained apart", "trained apart, then joined", "trained in one space", "trained apart, heads retrained"),
        strict=True,
    )
)
UPGRADE_TITLES = dict(
    zip(
        UPGRADE_WAYS,
        ("unconstrained", "distilled", "influence (BCT)", "unconstrained, joined", "compatible", "all heads retrained"),
        strict=True,
    )
)
OLD = "old extractor"


@dataclass(frozen=True)
class TransferTable:
    """Heads on other architectures, over seeds.

    Attributes:
        trials: one a seed, as ``measure_transfer`` gives them.
    """

    trials: tuple[Mapping[str, Any], ...]

    @property
    def ways(self) -> tuple[str, ...]:
        """What was measured."""
        return tuple(self.trials[0])

    def matrix(self, way: str) -> MatrixOverSeeds:
        """Every extractor under every head."""
        return over_seeds(self._matrices(way))

    @property
    def chance(self) -> float:
        """Of guessing, mean over the heads."""
        return float(np.mean(self._matrices(self.ways[0])[0].chance))

    def to_markdown(self) -> str:
        """A line a way, then the matrices with their gaps."""
        heading = ["way", "own head", "other heads", "labels of a head's task", "seconds"]
        parts = [markdown_table([heading, *(self._line(way) for way in self.ways)]), f"Chance is {self.chance:.3f}."]
        parts += [f"{_capital(TRANSFER_TITLES[way])}:\n\n{self.matrix_table(way)}" for way in self.ways]
        return "\n\n".join(parts)

    def matrix_table(self, way: str) -> str:
        """A matrix, own pairs in bold, with the points that exchanged pairs lie over (or under) own ones.

        The last column compares an extractor under other heads with the same under its own, the last line a head on
        other extractors with the same on its own.
        """
        matrices = self._matrices(way)
        first, values = matrices[0], np.stack([matrix.accuracy for matrix in matrices])
        lines = [["extractor \\ head", *first.columns, "other heads - own"]]
        by_row, by_column = gaps(values, first.native, 2), gaps(values, first.native, 1)
        for i, name in enumerate(first.rows):
            cells = [_cell(values[:, i, j], bool(first.native[i, j])) for j in range(len(first.columns))]
            lines.append([name, *cells, _points(by_row[:, i])])
        overall = self.matrix(way)
        total = POINTS * (overall.recombined_accuracy - overall.native_accuracy)
        lines.append(["other extractors - own", *(_points(gap) for gap in by_column.T), _points(total)])
        return markdown_table(lines)

    def in_one_line(self) -> str:
        """How heads do on other extractors, by way."""
        found = [f"{TRANSFER_TITLES[way]} {_other(self.matrix(way))}" for way in self.ways]
        own = [f"{TRANSFER_TITLES[way]} {_own(self.matrix(way))}" for way in self.ways if way in ("apart", "one_space")]
        ending = f"; on their own, {', '.join(own)}" if own else ""
        return f"Heads on other architectures, chance {self.chance:.3f}: {', '.join(found)}{ending}."

    def to_dict(self) -> dict[str, Any]:
        """JSON values by way."""
        return {way: {**self.matrix(way).to_dict(), **self._needs(way)} for way in self.ways}

    def _needs(self, way: str) -> dict[str, list[float]]:
        return {key: [trial[way][key] for trial in self.trials] for key in ("labels", "seconds")}

    def _line(self, way: str) -> list[str]:
        matrix, needs = self.matrix(way), self._needs(way)
        labels, seconds = (f"{np.mean(needs[key]):,.0f}" for key in ("labels", "seconds"))
        return [TRANSFER_TITLES[way], _own(matrix), _other(matrix), labels, seconds]

    def _matrices(self, way: str) -> list[RecombinationMatrix]:
        return [_matrix_of(trial[way]["matrix"]) for trial in self.trials]


@dataclass(frozen=True)
class UpgradeTable:
    """An upgrade over seeds.

    Attributes:
        trials: one a seed, as ``measure_upgrade`` gives them.
    """

    trials: tuple[Mapping[str, Any], ...]

    @property
    def ways(self) -> tuple[str, ...]:
        """What was measured."""
        return tuple(self.trials[0]["ways"])

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the old heads."""
        return tuple(self.trials[0]["old"])

    def values(self, way: str, column: str) -> list[float]:
        """One number a seed; those that could not be had are left out.

        Args:
            way: one of ``ways``.
            column: an old head's name for the accuracy of the new extractor under it; "cross" for their mean, "gain"
                (update gain over all old heads), "gain NAME" of one, "flips", "own", "own_new_classes", "own_flips",
                "cost", "labels" or "seconds".
        """
        found = [_value(trial, way, column) for trial in self.trials]
        return [value for value in found if not math.isnan(value)]

    def to_markdown(self) -> str:
        """Two tables: the old heads on the new extractor, and the new network's own task."""
        old = markdown_table(
            [
                [
                    *("way", *(f"head {name}" for name in self.heads)),
                    *(*(f"update gain {name}" for name in self.heads), "negative flips", "labels of old tasks"),
                ],
                [OLD, *(self._old(name) for name in self.heads), *("" for _ in self.heads), "", ""],
                *([UPGRADE_TITLES[way], *self._old_cells(way)] for way in self.ways),
            ]
        )
        own = markdown_table(
            [
                ["way", "new head", "its new classes", "compatibility cost", "its negative flips", "seconds"],
                *([UPGRADE_TITLES[way], *self._own_cells(way)] for way in self.ways),
            ]
        )
        return f"Old heads on the new extractor:\n\n{old}\n\nThe new head on it:\n\n{own}"

    def in_one_line(self) -> str:
        """How the old heads do on the new extractor, by way."""
        old = spread_text([_mean(trial["old"].values()) for trial in self.trials])
        found = [f"{UPGRADE_TITLES[way]} {spread_text(self.values(way, 'cross'))}" for way in self.ways]
        return f"Old heads on the new extractor: {', '.join(found)}; on the old one {old}."

    def to_dict(self) -> dict[str, Any]:
        """JSON values: by way one number a seed."""
        columns = ("cross", *self.heads, *("gain", "flips", "own", "own_new_classes", "own_flips", "cost"))
        ways = {way: {key: self.values(way, key) for key in (*columns, "labels", "seconds")} for way in self.ways}
        accuracies = {key: {name: self._of(key, name) for name in self.heads} for key in ("old", "ceiling")}
        return {**accuracies, "ways": ways}

    def _of(self, key: str, name: str) -> list[float]:
        return [trial[key][name] for trial in self.trials if trial[key].get(name) is not None]

    def _old(self, name: str) -> str:
        return spread_text(self._of("old", name))

    def _old_cells(self, way: str) -> list[str]:
        columns = (*self.heads, *(f"gain {name}" for name in self.heads), "flips")
        return [*(spread_text(self.values(way, key)) for key in columns), f"{np.mean(self.values(way, 'labels')):,.0f}"]

    def _own_cells(self, way: str) -> list[str]:
        columns = ("own", "own_new_classes", "cost", "own_flips")
        return [
            *(spread_text(self.values(way, key)) for key in columns),
            f"{np.mean(self.values(way, 'seconds')):,.0f}",
        ]


def gaps(values: Array, native: Any, axis: int) -> Array:
    """Points that exchanged pairs lie over own ones, mean along one axis: (seeds, rows), or (seeds, columns).

    Args:
        values: (seeds, rows, columns), accuracies.
        native: (rows, columns).
        axis: 2 for an extractor's heads, 1 for a head's extractors.
    """
    others, own = np.where(native, np.nan, values), np.where(native, values, np.nan)
    result: Array = POINTS * (np.nanmean(others, axis=axis) - np.nanmean(own, axis=axis))
    return result


def _value(trial: Mapping[str, Any], way: str, column: str) -> float:
    found = trial["ways"][way]
    if column == "cost":
        return compatibility_cost(trial["own"], found["own"])
    if column == "gain" or column.startswith("gain "):
        name = column.removeprefix("gain").strip()
        return _gain(trial, found["cross"], [name] if name else list(trial["old"]))
    if column in ("cross", "flips"):
        return _mean(found[column].values())
    value = found["cross"].get(column) if column in trial["old"] else found[column]
    return math.nan if value is None else float(value)


def _gain(trial: Mapping[str, Any], cross: Mapping[str, float], asked: Sequence[str]) -> float:
    names = [name for name in asked if name in trial["ceiling"] and name in cross]
    if not names:
        return math.nan
    new, old, best = (_mean(side[name] for name in names) for side in (cross, trial["old"], trial["ceiling"]))
    return update_gain(new, old, best)


def _mean(values: Any) -> float:
    found = list(values)
    return float(np.mean(found)) if found else math.nan


def _matrix_of(found: Mapping[str, Any]) -> RecombinationMatrix:
    return RecombinationMatrix(
        accuracy=np.array(found["accuracy"], dtype=np.float64),  # null becomes NaN
        rows=tuple(found["rows"]),
        columns=tuple(found["columns"]),
        native=np.array(found["native"], dtype=bool),
        chance=np.array(found["chance"]),
        counts=tuple(found["counts"]),
    )


def _own(matrix: MatrixOverSeeds) -> str:
    return spread_text(matrix.native_accuracy.tolist())


def _other(matrix: MatrixOverSeeds) -> str:
    return spread_text(matrix.recombined_accuracy.tolist())


def _cell(values: Array, own: bool) -> str:
    text = spread_text([value for value in values.tolist() if not math.isnan(value)])
    return f"**{text}**" if own else text


def _points(values: Array) -> str:
    return spread_text(values.tolist(), digits=1)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

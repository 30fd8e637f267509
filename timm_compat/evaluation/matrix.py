"""The recombination matrix: accuracy of every extractor (rows) under every task head (columns)."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Unpack

from timm_compat.errors import ConfigError, DataError
from timm_compat.evaluation import plots, scores
from timm_compat.evaluation.answers import Images, Outputs, run_once, spread
from timm_compat.evaluation.cells import Targets, check_classes, check_parts, find_targets, why_not
from timm_compat.evaluation.intervals import CONFIDENCE, wilson_interval
from timm_compat.evaluation.predictions import (
    calibration_error,
    negative_flip_rate,
    relative_negative_flip_rate,
)
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import DEFAULTS
from timm_compat.models.run_options import RunKeywords, RunOptions
from timm_compat.storage.facts import Facts, Result
from timm_compat.table import markdown_table

CROSS_SPACE_SIGN = "†"
NOT_MEASURED = "n/a"
LEFT_OUT = "images left out"


@dataclass(frozen=True)
class Predictions:
    """What every pair said about N images.

    Attributes:
        predicted: (rows, columns, N), position among the head's classes; -1 where the pair was not run.
        confidence: (rows, columns, N), its probability in [0, 1]; NaN where the pair was not run.
        expected: (columns, N), the true one; -1 for an image of a class that the head does not know.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    expected: NDArray[np.int64]


@dataclass(frozen=True)
class RecombinationMatrix:
    """Accuracy of every extractor (rows) under every head (columns).

    Attributes:
        accuracy: (rows, columns), each in [0, 1], NaN where not measured.
        rows: extractors' names.
        columns: heads' names.
        native: (rows, columns), whether extractor and head have the same name.
        chance: accuracy of guessing among each head's classes: (columns,).
        counts: number of images that each column was measured on: (columns,).
        left_out: number of images that each column was not measured on, as its head does not know their class:
            (columns,); empty if not known.
        cross_space: (rows, columns), whether extractor and head are of different spaces; False everywhere if None.
        reasons: why a cell was not measured, by (row, column).
        predictions: of every image, for flips and calibration.
    """

    accuracy: scores.Array
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    native: scores.Mask
    chance: scores.Array
    counts: tuple[int, ...]
    cross_space: scores.Mask | None = None
    reasons: Mapping[tuple[int, int], str] = field(default_factory=dict)
    predictions: Predictions | None = field(default=None, repr=False, compare=False)
    left_out: tuple[int, ...] = ()

    @property
    def native_accuracy(self) -> float:
        """Mean over extractors under their own heads."""
        return scores.native_accuracy(self.accuracy, self.native)

    @property
    def recombined_accuracy(self) -> float:
        """Mean over all other pairs."""
        return scores.recombined_accuracy(self.accuracy, self.native)

    @property
    def compatibility(self) -> scores.Array:
        """Share of each head's native accuracy above chance that is kept: (rows, columns)."""
        return scores.compatibility(self.accuracy, self.native, self.chance)

    @property
    def cell_counts(self) -> NDArray[np.int64]:
        """Images behind every cell, 0 where not measured: (rows, columns)."""
        counts: NDArray[np.int64] = np.where(np.isnan(self.accuracy), 0, np.array(self.counts, dtype=np.int64))
        return counts

    def intervals(self, confidence: float = CONFIDENCE) -> tuple[scores.Array, scores.Array]:
        """Wilson intervals over the images: lower and upper ends, (rows, columns) each; they do not cover seeds."""
        ends = [
            wilson_interval(float(share), int(count), confidence)
            for share, count in zip(self.accuracy.flat, self.cell_counts.flat, strict=True)
        ]
        low, high = np.array(ends).T.reshape(2, *self.accuracy.shape)
        return low, high

    def negative_flips(self, *, relative: bool = False) -> scores.Array:
        """Flips from right to wrong when a head's own extractor is replaced: (rows, columns); see ``predictions``.

        Args:
            relative: as a ratio to the flips of two models that err independently.

        Raises:
            ConfigError: the matrix has no predictions.
        """
        rate = relative_negative_flip_rate if relative else negative_flip_rate
        known = self._predictions()
        result = np.full(self.accuracy.shape, np.nan)
        for row, column in zip(*np.nonzero(~np.isnan(self.accuracy)), strict=True):
            own = np.flatnonzero(self.native[:, column] & ~np.isnan(self.accuracy[:, column]))
            if len(own):
                kept = known.expected[column] >= 0
                old, new = (known.predicted[index, column][kept] for index in (own[0], row))
                result[row, column] = rate(old, new, known.expected[column][kept])
        return result

    def calibration_errors(self) -> scores.Array:
        """Expected calibration error of every pair, in [0, 1]: (rows, columns); see ``predictions``.

        Raises:
            ConfigError: the matrix has no predictions.
        """
        known = self._predictions()
        result = np.full(self.accuracy.shape, np.nan)
        for row, column in zip(*np.nonzero(~np.isnan(self.accuracy)), strict=True):
            kept = known.expected[column] >= 0
            right = known.predicted[row, column][kept] == known.expected[column][kept]
            result[row, column] = calibration_error(known.confidence[row, column][kept], right)
        return result

    def to_markdown(self) -> str:
        """A table, native cells in bold, with a legend of the signs that occur.

        If a head does not know the classes of all images, the last line says how many it was not measured on.
        """
        lines = [["extractor \\ head", *self.columns]]
        lines += [
            [name, *(self._cell(row, column) for column in range(len(self.columns)))]
            for row, name in enumerate(self.rows)
        ]
        if any(self.left_out):
            pairs = zip(self.left_out, self.counts, strict=True)
            lines.append([LEFT_OUT, *(f"{missing} of {missing + count}" for missing, count in pairs)])
        return "\n".join([markdown_table(lines), *self._notes()])

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN is null."""
        low, high = self.intervals()
        crossed = np.zeros_like(self.native) if self.cross_space is None else self.cross_space
        return {
            "rows": list(self.rows),
            "columns": list(self.columns),
            "accuracy": json_numbers(self.accuracy),
            "interval": {
                "method": "wilson",
                "confidence": CONFIDENCE,
                "low": json_numbers(low),
                "high": json_numbers(high),
            },
            "native": self.native.tolist(),
            "cross_space": crossed.tolist(),
            "chance": self.chance.tolist(),
            "counts": list(self.counts),
            "cell_counts": self.cell_counts.tolist(),
            "left_out": list(self.left_out),
            "not_measured": [
                {"row": self.rows[row], "column": self.columns[column], "reason": reason}
                for (row, column), reason in self.reasons.items()
            ],
        }

    def save_json(self, file: str | Path) -> None:
        """Write ``to_dict()``."""
        Path(file).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def facts(self, dataset: str, member: str | None = None, known: Facts | None = None) -> Facts:
        """Facts for a component's card: this matrix, and the member's own accuracy.

        Args:
            dataset: name of what the matrix was measured on.
            member: name of the component's row or column; None for a space.
            known: facts to which these are added, such as the component's own.

        Raises:
            ConfigError: a member that the matrix does not have.
        """
        facts = Facts() if known is None else known
        own = [
            Result(dataset, float(self.accuracy[row, column]), num_images=self.counts[column])
            for row, column in zip(*np.nonzero(self.native), strict=True)
            if self.rows[row] == member and not np.isnan(self.accuracy[row, column])
        ]
        return replace(facts, matrix=self.to_dict(), member=member, results=(*facts.results, *own))

    def plot(self, ax: Any = None, *, title: str = "", colorbar: bool = True) -> tuple[Any, Any]:
        """A heat map as (figure, axis); native cells are framed.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        return plots.heat_map(
            self.accuracy, self.rows, self.columns, native=self.native, title=title, colorbar=colorbar, ax=ax
        )

    def _cell(self, row: int, column: int) -> str:
        value = self.accuracy[row, column]
        if np.isnan(value):
            return NOT_MEASURED
        text = f"**{value:.3f}**" if self.native[row, column] else f"{value:.3f}"
        crossed = self.cross_space is not None and self.cross_space[row, column]
        return f"{text} {CROSS_SPACE_SIGN}" if crossed else text

    def _notes(self) -> list[str]:
        notes = []
        if self.cross_space is not None and self.cross_space[~np.isnan(self.accuracy)].any():
            notes.append(f"{CROSS_SPACE_SIGN} extractor and head of different spaces")
        for reason in dict.fromkeys(self.reasons.values()):
            cells = [f"{self.rows[i]} / {self.columns[j]}" for (i, j), why in self.reasons.items() if why == reason]
            notes.append(f"{NOT_MEASURED}: {reason} ({', '.join(cells)})")
        return ["", *notes] if notes else []

    def _predictions(self) -> Predictions:
        if self.predictions is None:
            raise ConfigError("matrix: expected one that recombination_matrix measured, got one without predictions")
        return self.predictions


class Pair(Protocol):
    """A network as training has it, such as a ``Member``: its name, extractor and head."""

    @property
    def name(self) -> str:
        """Of both parts."""

    @property
    def extractor(self) -> CompatExtractor:
        """A row of the matrix."""

    @property
    def head(self) -> TaskHead | None:
        """A column of the matrix; none for a member without labels."""


@overload
def recombination_matrix(
    extractors: Iterable[Pair], /, *, dataset: Images, cross_space: bool = False, **run: Unpack[RunKeywords]
) -> RecombinationMatrix: ...


@overload
def recombination_matrix(
    extractors: Mapping[str, CompatExtractor],
    heads: Mapping[str, TaskHead],
    dataset: Images,
    *,
    cross_space: bool = False,
    **run: Unpack[RunKeywords],
) -> RecombinationMatrix: ...


def recombination_matrix(
    extractors: Any,
    heads: Any = None,
    dataset: Any = None,
    *,
    cross_space: bool = False,
    **run: Unpack[RunKeywords],
) -> RecombinationMatrix:
    """Measure every extractor under every head; an extractor and a head of the same name are native to each other.

    Every extractor sees the images once, the heads run on its features. A head is measured on the images of the
    classes that it knows, matched by name. Under ``accelerate launch`` every process must call this
    (they wait for each other), sees its share of the images, and gets the same matrix as a single process.

    Args:
        extractors: by name; or the members of a training, which bring their heads.
        heads: by name.
        dataset: labelled images.
        cross_space: allow parts of different spaces, as a baseline; such cells are marked.
        **run: ``device``, ``batch_size``, ``amp``, ``workers``, ``progress`` (see ``RunOptions``).

    Raises:
        ConfigError: no extractor or no head, or a setting out of range.
        DataError: no image, images of one class only, or no head knows two of the classes.
        SpaceMismatchError: parts of different spaces, and ``cross_space`` is false.

    Example:
        >>> digits = tc.data.load_digits("test")
        >>> space = tc.CompatSpace(64, methods=["rotation"])
        >>> names = "test_resnet", "test_vit"
        >>> extractors = {name: tc.create_extractor(name, space, in_chans=1, img_size=32) for name in names}
        >>> heads = {name: tc.TaskHead(space, digits.class_names) for name in extractors}
        >>> matrix = tc.recombination_matrix(extractors, heads, digits)
        >>> matrix.accuracy.shape, matrix.rows
        ((2, 2), ('test_resnet', 'test_vit'))
    """
    if heads is None and not isinstance(extractors, Mapping):
        pairs = list(extractors)
        extractors = {pair.name: pair.extractor for pair in pairs}
        heads = {pair.name: pair.head for pair in pairs if pair.head is not None}
    if heads is None or dataset is None:
        raise ConfigError(
            "recombination_matrix: expected extractors, heads and a data set, or members and dataset=, got less"
        )
    return measure(extractors, heads, dataset, cross_space=cross_space, options=RunOptions(**run))[0]


def measure(
    extractors: Mapping[str, CompatExtractor],
    heads: Mapping[str, TaskHead],
    dataset: Images,
    *,
    cross_space: bool = False,
    keep_features: bool = False,
    options: RunOptions = DEFAULTS,
) -> tuple[RecombinationMatrix, dict[str, torch.Tensor]]:
    """``recombination_matrix``, and with ``keep_features`` the features of ``sampled(dataset)`` by extractor."""
    crossed = check_parts(extractors, heads, cross_space)
    check_classes(dataset)
    return measure_targets(
        extractors, heads, dataset, find_targets(heads, dataset), crossed, keep_features=keep_features, options=options
    )


def measure_targets(
    extractors: Mapping[str, CompatExtractor],
    heads: Mapping[str, TaskHead],
    dataset: Images,
    targets: Mapping[str, Targets],
    crossed: scores.Mask,
    *,
    keep_features: bool = False,
    options: RunOptions = DEFAULTS,
) -> tuple[RecombinationMatrix, dict[str, torch.Tensor]]:
    """``measure`` with what every head should say to every image."""
    reasons = why_not(extractors, heads, targets)
    runs = np.ones((len(extractors), len(heads)), dtype=bool)
    for cell in reasons:
        runs[cell] = False
    if not any(target.reason is None for target in targets.values()):
        shown = ", ".join(dataset.class_names[:5])
        whys = "; ".join(f"{name}: {target.reason}" for name, target in targets.items())
        raise DataError(f"expected images of at least two classes that a head knows, got {shown} ...; {whys}")
    kept = spread(len(dataset)) if keep_features else None
    outputs = run_once(extractors, heads, dataset, runs, keep=kept, options=options)
    return _matrix(extractors, heads, targets, outputs, crossed, reasons), outputs.features


def json_numbers(values: scores.Array) -> Any:
    """Nested lists; NaN is null."""
    return np.where(np.isnan(values), None, values.astype(object)).tolist()  # type: ignore[call-overload]


def _matrix(
    extractors: Mapping[str, CompatExtractor],
    heads: Mapping[str, TaskHead],
    targets: Mapping[str, Targets],
    outputs: Outputs,
    crossed: scores.Mask,
    reasons: Mapping[tuple[int, int], str],
) -> RecombinationMatrix:
    expected = np.stack([target.positions.numpy() for target in targets.values()])
    values = np.full(crossed.shape, np.nan)
    for row, column in np.ndindex(values.shape):
        if (row, column) not in reasons:
            kept = expected[column] >= 0
            values[row, column] = scores.accuracy(outputs.predicted[row, column][kept], expected[column][kept])
    return RecombinationMatrix(
        accuracy=values,
        rows=tuple(extractors),
        columns=tuple(heads),
        native=np.array([[row == column for column in heads] for row in extractors]),
        chance=np.array([1 / head.num_classes for head in heads.values()]),
        counts=tuple(int((positions >= 0).sum()) for positions in expected),
        cross_space=crossed,
        reasons=reasons,
        predictions=Predictions(outputs.predicted, outputs.confidence, expected),
        left_out=tuple(int((positions < 0).sum()) for positions in expected),
    )


def pair_accuracy(extractor: CompatExtractor, head: TaskHead, dataset: Images) -> float:
    """Accuracy in [0, 1] on the images of classes that the head knows.

    Raises:
        CompatError: as ``recombination_matrix`` does.
    """
    return float(recombination_matrix({"": extractor}, {"": head}, dataset).accuracy[0, 0])

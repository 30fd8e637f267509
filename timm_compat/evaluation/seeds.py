"""Matrices of the same parts trained from several seeds: mean, standard deviation, interval of every cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from timm_compat.errors import ConfigError
from timm_compat.evaluation.intervals import CONFIDENCE, bootstrap_interval
from timm_compat.evaluation.matrix import RecombinationMatrix, json_numbers
from timm_compat.evaluation.plots import heat_map
from timm_compat.evaluation.scores import Array, Mask, native_accuracy, recombined_accuracy
from timm_compat.table import markdown_table


@dataclass(frozen=True)
class MatrixOverSeeds:
    """Every cell over seeds; a cell counts over the seeds that measured it.

    Attributes:
        mean: (rows, columns), accuracies in [0, 1]; NaN where no seed measured.
        std: (rows, columns), with n - 1 in the denominator; NaN for fewer than two measurements.
        measured: (rows, columns), number of seeds that measured a cell.
        native_accuracy: of every seed, (seeds,).
        recombined_accuracy: of every seed, (seeds,).
        rows: extractors' names.
        columns: heads' names.
        native: (rows, columns).
    """

    mean: Array
    std: Array
    measured: Array
    native_accuracy: Array
    recombined_accuracy: Array
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    native: Mask

    @property
    def seeds(self) -> int:
        """Number of matrices."""
        return len(self.native_accuracy)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Bootstrap interval over seeds of the mean recombined accuracy."""
        return bootstrap_interval(self.recombined_accuracy, confidence)

    def plot(self, ax: Any = None, *, title: str = "", colorbar: bool = True) -> tuple[Any, Any]:
        """A heat map of the means as (figure, axis); native cells are framed.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        return heat_map(self.mean, self.rows, self.columns, native=self.native, title=title, colorbar=colorbar, ax=ax)

    def to_markdown(self) -> str:
        """A table of mean ± standard deviation; native cells in bold."""
        body = [[name, *(self._cell(i, j) for j in range(len(self.columns)))] for i, name in enumerate(self.rows)]
        return markdown_table([["extractor \\ head", *self.columns], *body])

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN is null."""
        arrays = ("mean", "std", "measured", "native_accuracy", "recombined_accuracy")
        names = {"rows": list(self.rows), "columns": list(self.columns), "native": self.native.tolist()}
        return {**names, "seeds": self.seeds, **{name: json_numbers(getattr(self, name)) for name in arrays}}

    def _cell(self, row: int, column: int) -> str:
        mean, std = self.mean[row, column], self.std[row, column]
        if np.isnan(mean):
            return "n/a"
        text = f"{mean:.3f}" if np.isnan(std) else f"{mean:.3f} ± {std:.3f}"
        return f"**{text}**" if self.native[row, column] else text


def over_seeds(matrices: Sequence[RecombinationMatrix]) -> MatrixOverSeeds:
    """Mean and standard deviation of every cell.

    Args:
        matrices: one per seed, with the same rows and columns.

    Raises:
        ConfigError: no matrix, or other names in one of them.

    Example:
        >>> digits = tc.data.load_digits("test")
        >>> space = tc.CompatSpace(64)
        >>> extractor = tc.create_extractor("test_vit", space, in_chans=1, img_size=16)
        >>> head = tc.TaskHead(space, digits.class_names)
        >>> matrix = tc.recombination_matrix({"a": extractor}, {"a": head}, digits)
        >>> tc.evaluation.over_seeds([matrix, matrix]).std.tolist()
        [[0.0]]
    """
    if not matrices:
        raise ConfigError("matrices: expected at least one, got none")
    first = matrices[0]
    for matrix in matrices:
        if (matrix.rows, matrix.columns) != (first.rows, first.columns):
            raise ConfigError(
                f"matrices: expected rows {first.rows} and columns {first.columns} in all, "
                f"got {matrix.rows} and {matrix.columns}"
            )
    values = np.stack([matrix.accuracy for matrix in matrices])
    measured = (~np.isnan(values)).sum(axis=0).astype(np.float64)
    total = np.nansum(values, axis=0)
    mean = np.divide(total, measured, out=np.full_like(total, np.nan), where=measured > 0)
    squares = np.nansum((values - mean) ** 2, axis=0)
    variance = np.divide(squares, measured - 1, out=np.full_like(total, np.nan), where=measured > 1)
    return MatrixOverSeeds(
        mean=mean,
        std=np.sqrt(variance),
        measured=measured,
        native_accuracy=np.array([native_accuracy(matrix.accuracy, matrix.native) for matrix in matrices]),
        recombined_accuracy=np.array([recombined_accuracy(matrix.accuracy, matrix.native) for matrix in matrices]),
        rows=first.rows,
        columns=first.columns,
        native=first.native,
    )

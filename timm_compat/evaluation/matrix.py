"""The recombination matrix: accuracy of every extractor (rows) under every task head (columns)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.errors import ConfigError, DataError
from timm_compat.evaluation import plots, scores
from timm_compat.facts import Facts, Result
from timm_compat.methods.common_classes import vocabulary_positions
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.features import evaluating, extract_features
from timm_compat.models.heads import TaskHead


@dataclass(frozen=True)
class RecombinationMatrix:
    """Accuracies with their names.

    Attributes:
        accuracy: (rows, columns), each in [0, 1], NaN where a head knows none of the classes at hand.
        rows: extractors' names.
        columns: heads' names.
        native: (rows, columns), where extractor and head bear one name.
        chance: of guessing one of each head's classes: (columns,).
        counts: images that each column was measured on: (columns,).
    """

    accuracy: scores.Array
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    native: scores.Mask
    chance: scores.Array
    counts: tuple[int, ...]

    @property
    def native_accuracy(self) -> float:
        """Mean over extractors under their own heads."""
        return scores.native_accuracy(self.accuracy, self.native)

    @property
    def recombined_accuracy(self) -> float:
        """Mean over all other pairs."""
        return scores.recombined_accuracy(self.accuracy, self.native)

    def to_markdown(self) -> str:
        """A table; native cells in bold."""
        lines = [["extractor \\ head", *self.columns], ["---", *["---:"] * len(self.columns)]]
        for row, name in enumerate(self.rows):
            cells = [f"{value:.3f}" for value in self.accuracy[row]]
            native = self.native[row]
            lines.append([name, *(f"**{cell}**" if own else cell for cell, own in zip(cells, native, strict=True))])
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join(
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN is null."""
        return {
            "rows": list(self.rows),
            "columns": list(self.columns),
            "accuracy": [[None if np.isnan(value) else float(value) for value in row] for row in self.accuracy],
            "native": self.native.tolist(),
            "chance": self.chance.tolist(),
            "counts": list(self.counts),
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


@torch.no_grad()
def recombination_matrix(
    extractors: Mapping[str, CompatExtractor],
    heads: Mapping[str, TaskHead],
    dataset: ArrayDataset | ImageDataset,
    *,
    cross_space: bool = False,
) -> RecombinationMatrix:
    """Measure every extractor under every head; an extractor and a head of one name are native to each other.

    Every extractor sees the images once, the heads run on its features. A head is measured on the images of the
    classes that it knows, matched by name.

    Args:
        extractors: by name.
        heads: by name.
        dataset: labelled images.
        cross_space: allow parts of different spaces, as a baseline.

    Raises:
        ConfigError: no extractor or no head.
        DataError: no image, or no class in common between the data set and any head.
        SpaceMismatchError: parts of different spaces, and ``cross_space`` is false.
    """
    if not extractors or not heads:
        raise ConfigError(f"expected extractors and heads by name, got {len(extractors)} and {len(heads)}")
    if not cross_space:
        for row, extractor in extractors.items():
            for column, head in heads.items():
                extractor.space.require_same(head.space, f"extractor {row!r}", f"head {column!r}")
    targets = {name: _targets(head, dataset) for name, head in heads.items()}
    known = {name: target >= 0 for name, target in targets.items()}
    if not any(bool(kept.any()) for kept in known.values()):
        raise DataError(
            f"expected images of classes that a head knows, got {', '.join(dataset.class_names[:5])} ... "
            f"for heads of {', '.join(next(iter(heads.values())).class_names[:5])} ..."
        )
    values = np.full((len(extractors), len(heads)), np.nan)
    for i, extractor in enumerate(extractors.values()):
        features = extract_features(extractor, dataset)
        for j, (name, head) in enumerate(heads.items()):
            kept = known[name].to(features.device)
            with evaluating(head):
                predicted = head(features[kept]).argmax(dim=1).cpu()
            values[i, j] = scores.accuracy(predicted.numpy(), targets[name][known[name]].numpy())
    return RecombinationMatrix(
        accuracy=values,
        rows=tuple(extractors),
        columns=tuple(heads),
        native=np.array([[row == column for column in heads] for row in extractors]),
        chance=np.array([1 / head.num_classes for head in heads.values()]),
        counts=tuple(int(kept.sum()) for kept in known.values()),
    )


def _targets(head: TaskHead, dataset: ArrayDataset | ImageDataset) -> Tensor:
    return vocabulary_positions(dataset.class_names, head.class_names)[dataset.labels]

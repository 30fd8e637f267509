"""The same extractors under heads that each have their own test images: one matrix, one pass over every image."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from timm_compat.errors import ConfigError
from timm_compat.evaluation.answers import Images
from timm_compat.evaluation.cells import Targets, check_classes, check_parts, find_targets
from timm_compat.evaluation.matrix import RecombinationMatrix, measure_targets
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.run_options import RunKeywords, RunOptions

UNKNOWN, NO_CLASS = -1, "any"


def matrix_of_columns(
    extractors: Mapping[str, CompatExtractor],
    heads: Mapping[str, TaskHead],
    tests: Mapping[str, Images],
    *,
    cross_space: bool = False,
    **run: Unpack[RunKeywords],
) -> RecombinationMatrix:
    """Every extractor under every head, each head on its own test images. Images that several tests hold pass once.

    Args:
        extractors: by name.
        heads: by name.
        tests: labelled images by head's name.
        cross_space: allow parts of different spaces, as a baseline; such cells are marked.
        **run: ``device``, ``batch_size``, ``amp``, ``workers``, ``progress`` (see ``RunOptions``).

    Raises:
        CompatError: as ``recombination_matrix`` does.
    """
    groups: dict[Hashable, list[str]] = {}
    for name in heads:
        check_classes(tests[name])
        groups.setdefault(tests[name].form, []).append(name)
    options, columns = RunOptions(**run), []
    for names in groups.values():
        group = {name: heads[name] for name in names}
        crossed = check_parts(extractors, group, cross_space)
        images, indices = _united([tests[name] for name in names])
        targets = {}
        for name, own in zip(names, indices, strict=True):
            found = find_targets({name: heads[name]}, tests[name])[name]
            positions = torch.full((len(images),), UNKNOWN)
            positions[own] = found.positions
            targets[name] = Targets(positions, found.reason)
        matrix = measure_targets(extractors, group, images, targets, crossed, options=options)[0]
        unknown = [len(tests[name]) - count for name, count in zip(names, matrix.counts, strict=True)]
        columns.append(replace(matrix, left_out=tuple(unknown)))
    return columns[0] if len(columns) == 1 else _in_order(side_by_side(columns), tuple(heads))


def _in_order(matrix: RecombinationMatrix, names: tuple[str, ...]) -> RecombinationMatrix:
    order = [matrix.columns.index(name) for name in names]
    crossed = np.zeros_like(matrix.native) if matrix.cross_space is None else matrix.cross_space
    return replace(
        matrix,
        accuracy=matrix.accuracy[:, order],
        columns=names,
        native=matrix.native[:, order],
        chance=matrix.chance[order],
        counts=tuple(matrix.counts[column] for column in order),
        left_out=tuple(matrix.left_out[column] for column in order),
        cross_space=crossed[:, order],
        reasons={(row, order.index(column)): reason for (row, column), reason in matrix.reasons.items()},
    )


def _united(datasets: Sequence[Images]) -> tuple[Images, list[Tensor]]:
    """One set of the images of several, each once, and the indices of each one's images in it; labels mean nothing."""
    first = datasets[0]
    if all(dataset is first for dataset in datasets):
        return first, [torch.arange(len(first))] * len(datasets)
    known: dict[Hashable, int] = {}
    entries: list[tuple[Any, int]] = []
    indices = []
    for dataset in datasets:
        seen: dict[Hashable, int] = {}
        own = []
        for index, key in enumerate(dataset.image_keys()):
            seen[key] = seen.get(key, 0) + 1  # an image that a set holds twice counts twice
            position = known.setdefault((key, seen[key]), len(known))
            if position == len(entries):
                entries.append((dataset, index))
            own.append(position)
        indices.append(torch.tensor(own))
    return type(first).collected(entries, NO_CLASS), indices


def side_by_side(matrices: Sequence[RecombinationMatrix]) -> RecombinationMatrix:
    """The columns of matrices of the same extractors as one matrix; each may have been measured on its own images.

    Predictions are dropped, for the images differ.

    Raises:
        ConfigError: no matrix, or other rows in one of them.
    """
    if not matrices or any(matrix.rows != matrices[0].rows for matrix in matrices):
        raise ConfigError(f"matrices: expected one or more with the same rows, got {[m.rows for m in matrices]}")
    crossed = [np.zeros_like(m.native) if m.cross_space is None else m.cross_space for m in matrices]
    starts = np.cumsum([0, *(len(matrix.columns) for matrix in matrices)])
    return RecombinationMatrix(
        accuracy=np.concatenate([matrix.accuracy for matrix in matrices], axis=1),
        rows=matrices[0].rows,
        columns=tuple(name for matrix in matrices for name in matrix.columns),
        native=np.concatenate([matrix.native for matrix in matrices], axis=1),
        chance=np.concatenate([matrix.chance for matrix in matrices]),
        counts=tuple(count for matrix in matrices for count in matrix.counts),
        left_out=tuple(count for matrix in matrices for count in matrix.left_out or (0,) * len(matrix.columns)),
        cross_space=np.concatenate(crossed, axis=1),
        reasons={
            (row, column + int(start)): reason
            for matrix, start in zip(matrices, starts, strict=False)
            for (row, column), reason in matrix.reasons.items()
        },
    )

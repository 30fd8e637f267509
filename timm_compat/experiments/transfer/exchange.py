"""Heads on other architectures: networks of one space, joined ones, those trained apart, and retrained heads."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from timm_compat.evaluation.columns import matrix_of_columns
from timm_compat.evaluation.matrix import RecombinationMatrix
from timm_compat.experiments.build import build_member, build_space, with_common_classes
from timm_compat.experiments.engine import Experiment
from timm_compat.experiments.frozen import Features
from timm_compat.experiments.transfer.networks import Network, Read
from timm_compat.experiments.transfer.recipe import ClassifierTransferRecipe
from timm_compat.models.heads import TaskHead
from timm_compat.training.members import Member

Measured = tuple[RecombinationMatrix, float]  # and the seconds that it took


class Exchange:
    """The networks of one seed, whose heads are exchanged.

    Args:
        recipe: with ``transfer``.
        seed: of everything random.
        read: their images.

    Raises:
        CompatError: as the data sets raise it, or because networks have nothing in common that the space needs.
    """

    def __init__(self, recipe: ClassifierTransferRecipe, seed: int, read: Read) -> None:
        assert recipe.transfer is not None
        self.recipe, self.ways, self.seed = recipe, recipe.transfer.chosen_ways, seed
        self.frozen = recipe.transfer.frozen
        given = recipe.transfer.networks
        self.networks = {each.name: Network.read(f"network {each.name!r}", each, read) for each in given}
        if "one_space" in self.ways:
            self.space = with_common_classes(recipe.space, [network.data for network in self.networks.values()])

    def measure(self, experiment: Experiment) -> dict[str, Any]:
        """By way JSON values: "matrix", "seconds" of training and fitting, and "labels".

        Of networks that stay as they came, seconds hold the pass over an image only where nobody kept its features.

        The labels are those that a head's task must give once more, summed over all exchanged pairs.
        """
        found: dict[str, Measured] = {}
        if "one_space" in self.ways:
            found["one_space"] = self._one_space(experiment)
        if set(self.ways) - {"one_space"}:
            found |= self._apart(experiment)
        once_more = sum(len(network.data) for network in self.networks.values()) * (len(self.networks) - 1)
        records = {}
        for way in self.ways:
            matrix, seconds = found[way]
            labels = once_more if way == "retrained" else 0
            records[way] = {"matrix": matrix.to_dict(), "seconds": seconds, "labels": labels}
        return records

    def _one_space(self, experiment: Experiment) -> Measured:
        training = replace(self.recipe.training, seed=self.seed, influence_weight=0.0, distillation_weight=0.0)
        space, networks = build_space(self.space, self.seed), self.networks.values()
        members = [build_member(network.given, space, network.data, self.seed) for network in networks]
        seconds = experiment.train(f"seed{self.seed}-one_space", space, members, training).seconds
        return self._matrix({member.name: member for member in members}), seconds

    def _apart(self, experiment: Experiment) -> dict[str, Measured]:
        training, members, seconds = replace(self.recipe.training, seed=self.seed), {}, 0.0
        for name, network in self.networks.items():
            folder = f"seed{self.seed}-apart-{name}"
            members[name], took = network.train_alone(folder, self.recipe.space, training, experiment)
            seconds += took
        features = experiment.features
        apart = self._matrix(members, cross_space=True) if not self.frozen else self._as_they_came(members, features)
        found = {"apart": (apart, seconds)}

        def join_pair(row: str, column: str, *, with_images: bool = True) -> float:
            # Images like those that the head learned from serve it best; their labels are not looked at.
            reference, head, network = members[column].extractor, _head(members[column]), self.networks[column]
            images = network.data if with_images else None
            extractor = self.networks[row].joined(members[row], images, reference.space, reference, [head], features)
            return features.accuracy(extractor, head, network.test)

        def retrain_pair(row: str, column: str) -> float:
            extractor, network = members[row].extractor, self.networks[column]
            return features.accuracy(extractor, features.probe(extractor, network.data, self.seed), network.test)

        cells: dict[str, Callable[[str, str], float]] = {
            "classes": partial(join_pair, with_images=False),
            "joined": join_pair,
            "retrained": retrain_pair,
        }
        for way, cell in cells.items():
            if way in self.ways:
                matrix, took = _pairs(apart, cell)
                found[way] = matrix, seconds + took
        return found

    def _matrix(self, members: Mapping[str, Member], *, cross_space: bool = False) -> RecombinationMatrix:
        extractors = {name: member.extractor for name, member in members.items()}
        heads = {name: _head(member) for name, member in members.items()}
        tests = {name: network.test for name, network in self.networks.items()}
        return matrix_of_columns(extractors, heads, tests, cross_space=cross_space)

    def _as_they_came(self, members: Mapping[str, Member], features: Features) -> RecombinationMatrix:
        """As ``_matrix``, from kept features; NaN where an extractor has another number of them than a head reads."""
        names, heads = tuple(members), [_head(member) for member in members.values()]

        def cell(row: Member, head: TaskHead, network: Network) -> float:
            fits = row.extractor.num_features == head.space.feature_dim
            return features.accuracy(row.extractor, head, network.test) if fits else math.nan

        return RecombinationMatrix(
            accuracy=np.array(
                [
                    [cell(row, head, network) for head, network in zip(heads, self.networks.values(), strict=True)]
                    for row in members.values()
                ]
            ),
            rows=names,
            columns=names,
            native=np.eye(len(names), dtype=bool),
            chance=np.array([1 / head.num_classes for head in heads]),
            counts=tuple(len(network.test) for network in self.networks.values()),
        )


def _head(member: Member) -> TaskHead:
    assert member.head is not None  # the recipe asks for labels
    return member.head


def _pairs(apart: RecombinationMatrix, cell: Callable[[str, str], float]) -> Measured:
    """The matrix with every exchanged pair made to fit on its own; a network under its own head stays as it is."""
    start, values = time.perf_counter(), apart.accuracy.copy()
    for i, row in enumerate(apart.rows):
        for j, column in enumerate(apart.columns):
            if row != column:
                values[i, j] = cell(row, column)
    matrix = replace(apart, accuracy=values, cross_space=None, predictions=None)
    return matrix, time.perf_counter() - start

"""Heads on other architectures: networks of one space, joined ones, those trained apart, and retrained heads."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from timm_compat.applications.build import build_member, build_space, with_common_classes
from timm_compat.applications.classifier_transfer.networks import (
    Network,
    Read,
    joined,
    read_network,
    train_alone,
)
from timm_compat.applications.classifier_transfer.recipe import ClassifierTransferRecipe
from timm_compat.applications.trials import Trials
from timm_compat.evaluation.columns import matrix_of_columns
from timm_compat.evaluation.matrix import RecombinationMatrix, pair_accuracy
from timm_compat.evaluation.probe import linear_probe
from timm_compat.models.heads import TaskHead
from timm_compat.training.members import Member

Measured = tuple[RecombinationMatrix, float]


def read_transfer(recipe: ClassifierTransferRecipe, read: Read) -> dict[str, Network]:
    """The networks with their images, by name.

    Raises:
        CompatError: as the data sets raise it, or because networks have nothing in common that the space needs.
    """
    assert recipe.transfer is not None
    networks = {given.name: read_network(f"network {given.name!r}", given, read) for given in recipe.transfer.networks}
    if "one_space" in recipe.transfer.ways:
        with_common_classes(recipe.space, [network.data for network in networks.values()])
    return networks


def measure_transfer(
    recipe: ClassifierTransferRecipe, seed: int, networks: Mapping[str, Network], trials: Trials
) -> dict[str, Any]:
    """All ways of one seed as JSON values: by way "matrix", "seconds" of training and fitting, and "labels".

    The labels are those that a head's task must give once more, summed over all exchanged pairs.

    Args:
        recipe: with ``transfer``.
        seed: of this trial.
        networks: by name.
        trials: where trainings are kept.

    Raises:
        CompatError: any of ours.
    """
    assert recipe.transfer is not None
    ways = recipe.transfer.ways
    found: dict[str, Measured] = {}
    if "one_space" in ways:
        found["one_space"] = _one_space(recipe, seed, networks, trials)
    if set(ways) - {"one_space"}:
        found |= _apart(recipe, seed, networks, trials)
    once_more = sum(len(network.data) for network in networks.values()) * (len(networks) - 1)
    return {
        way: {
            "matrix": found[way][0].to_dict(),
            "seconds": found[way][1],
            "labels": once_more if way == "retrained" else 0,
        }
        for way in ways
    }


def _one_space(
    recipe: ClassifierTransferRecipe, seed: int, networks: Mapping[str, Network], trials: Trials
) -> Measured:
    training = replace(recipe.training, seed=seed, influence_weight=0.0, distillation_weight=0.0)
    given = with_common_classes(recipe.space, [network.data for network in networks.values()])
    space = build_space(given, seed)
    members = [build_member(network.given, space, network.data, seed) for network in networks.values()]
    seconds = trials.train(f"seed{seed}-one_space", space, members, training).seconds
    return _matrix({member.name: member for member in members}, networks), seconds


def _apart(
    recipe: ClassifierTransferRecipe, seed: int, networks: Mapping[str, Network], trials: Trials
) -> dict[str, Measured]:
    assert recipe.transfer is not None
    training, members, seconds = replace(recipe.training, seed=seed), {}, 0.0
    for name, network in networks.items():
        members[name], took = train_alone(f"seed{seed}-apart-{name}", network, recipe.space, training, trials)
        seconds += took
    apart = _matrix(members, networks, cross_space=True)
    found = {"apart": (apart, seconds)}

    def join_pair(row: str, column: str) -> float:
        # Images like those that the head learned from serve it best; their labels are not looked at.
        reference, head, network = members[column].extractor, _head(members[column]), networks[column]
        extractor = joined(members[row], networks[row].given, network.data, reference, [head])
        return pair_accuracy(extractor, head, network.test)

    def retrain_pair(row: str, column: str) -> float:
        extractor, network = members[row].extractor, networks[column]
        return pair_accuracy(extractor, linear_probe(extractor, network.data, seed=seed), network.test)

    for way, cell in (("joined", join_pair), ("retrained", retrain_pair)):
        if way in recipe.transfer.ways:
            matrix, took = _pairs(apart, cell)
            found[way] = matrix, seconds + took
    return found


def _matrix(
    members: Mapping[str, Member], networks: Mapping[str, Network], *, cross_space: bool = False
) -> RecombinationMatrix:
    extractors = {name: member.extractor for name, member in members.items()}
    heads = {name: _head(member) for name, member in members.items()}
    tests = {name: network.test for name, network in networks.items()}
    return matrix_of_columns(extractors, heads, tests, cross_space=cross_space)


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

"""A new extractor under the heads of an old one: what each way of upgrading gains, breaks and costs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError, DataError
from timm_compat.evaluation.cells import LEAST_CLASSES
from timm_compat.evaluation.matrix import recombination_matrix
from timm_compat.evaluation.predictions import negative_flip_rate
from timm_compat.evaluation.probe import linear_probe
from timm_compat.experiments.build import build_member, build_space, with_common_classes
from timm_compat.experiments.engine import Experiment
from timm_compat.experiments.transfer.networks import (
    ALONE,
    Network,
    Read,
    check_test,
    joined,
    read_network,
    train_alone,
)
from timm_compat.experiments.transfer.recipe import ClassifierTransferRecipe, UpgradeRecipe
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.space import CompatSpace
from timm_compat.training.members import Images, Member, Reference

# By image 1 where the answer is right, 0 where it is wrong, -1 where the head knows no answer.
Right = NDArray[np.int64]
TRAINED_IN_OLD_SPACE = ("distilled", "bct", "compatible")


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade starts from.

    Attributes:
        new: the new network.
        old: the old network, or None where its extractor exists.
        extractor: the existing old extractor, or None.
        space: that of the existing extractor, or None.
        heads: existing heads by name; empty where they are to be trained.
        data: labelled training images by old head's name, where there are any.
        tests: labelled test images by old head's name; the first head is the old network's own.
    """

    new: Network
    old: Network | None
    extractor: CompatExtractor | None
    space: CompatSpace | None
    heads: Mapping[str, TaskHead]
    data: Mapping[str, Images]
    tests: Mapping[str, Images]


@dataclass(frozen=True)
class _Old:
    """The old extractor, its heads, whether they answer right on their test images, and the first on the new ones."""

    extractor: CompatExtractor
    space: CompatSpace
    heads: Mapping[str, TaskHead]
    right: Mapping[str, Right]
    right_on_new: Right

    @property
    def reference(self) -> Reference:
        return Reference(self.extractor, next(iter(self.heads.values())))


@dataclass(frozen=True)
class _Way:
    """What one way of upgrading gives: an extractor for each of the heads, and the new task's own pair."""

    extractor: CompatExtractor
    heads: Mapping[str, TaskHead]
    own_extractor: CompatExtractor
    own_head: TaskHead
    seconds: float
    labels: int = 0


def read_upgrade(recipe: ClassifierTransferRecipe, read: Read) -> Upgrade:
    """Images and existing parts.

    Raises:
        CompatError: as data sets and parts raise it.
        ConfigError: nothing would tie a compatible network to an existing old one, or its space is not given.
        DataError: test images without two classes of a head, or old and new networks without two classes in common.
        SpaceMismatchError: an existing head of another space than the extractor.
    """
    given = recipe.upgrade
    assert given is not None
    new = read_network("upgrade.new", given.new, read)
    data, tests, old, extractor, space = {}, {}, None, None, None
    if given.old is not None:
        old = read_network("upgrade.old", given.old, read)
        data[given.old.name], tests[given.old.name] = old.data, old.test
    if given.extractor is not None:
        extractor = CompatExtractor.from_pretrained(given.extractor)
        space = _existing_space(extractor, recipe)
    like = given.new if given.old is None else given.old
    for head in given.heads:
        tests[head.name] = read(f"test of head {head.name!r}", head.test, like)
        if head.data is not None:
            data[head.name] = read(f"head {head.name!r}", head.data, like)
    heads = {} if extractor is None else _existing_heads(given, extractor)
    class_names = {name: heads[name].class_names if name in heads else data[name].class_names for name in tests}
    for name, names in class_names.items():
        check_test(f"head {name!r}", names, tests[name])
    _check_shared(next(iter(class_names.values())), new.data.class_names)
    return Upgrade(new, old, extractor, space, heads, data, tests)


def measure_upgrade(
    recipe: ClassifierTransferRecipe, seed: int, upgrade: Upgrade, experiment: Experiment
) -> dict[str, Any]:
    """All ways of one seed as JSON values.

    Args:
        recipe: with ``upgrade``.
        seed: of this trial.
        upgrade: what it starts from.
        experiment: where trainings and parts are kept.

    Returns:
        "old" and "ceiling": accuracies by old head; "own": accuracy of the unconstrained new network; "ways": by name
        "cross" and "flips" by old head, "own", "own_new_classes", "own_flips", "seconds", "labels". Accuracies and
        shares in [0, 1]; the ceiling is a head retrained with labels on the unconstrained new extractor, and lacks
        heads whose training images are not given.

    Raises:
        CompatError: any of ours.
    """
    assert recipe.upgrade is not None
    training = replace(recipe.training, seed=seed)
    old = _old(recipe, seed, upgrade, experiment)
    free, seconds = train_alone(f"seed{seed}-upgrade-unconstrained", upgrade.new, old.space, training, experiment)
    start = time.perf_counter()
    retrained = {name: linear_probe(free.extractor, data, seed=seed) for name, data in upgrade.data.items()}
    took = time.perf_counter() - start
    labels = sum(len(data) for data in upgrade.data.values())
    ways = {
        "unconstrained": _of_member(free, old.heads, seconds),
        "retrained": replace(_of_member(free, retrained, seconds + took), labels=labels),
    }
    for way in recipe.upgrade.ways:
        if way == "joined":
            ways[way] = _joined(upgrade, old, free, seconds)
        elif way not in ways:
            ways[way] = _trained(way, training, upgrade, old, experiment)
    _keep(experiment, seed, upgrade, old, ways)
    scores = {way: _scores(found, upgrade, old) for way, found in ways.items()}
    return {
        "old": _accuracies(old.right),
        "own": scores["unconstrained"]["own"],
        "ceiling": scores["retrained"]["cross"],
        "ways": {way: scores[way] for way in recipe.upgrade.ways},
    }


def _existing_space(extractor: CompatExtractor, recipe: ClassifierTransferRecipe) -> CompatSpace:
    assert recipe.upgrade is not None
    methods, ways = extractor.space.methods, recipe.upgrade.ways
    if "compatible" in ways and not methods and not _uses_old(recipe.training):
        raise ConfigError("training.alignment: expected l2 or contrastive, as the old space shares no method; got none")
    if recipe.space.folder is not None:
        space = CompatSpace.from_pretrained(recipe.space.folder)
        space.require_same(extractor.space, "space.folder", "the old extractor")
        return space
    if methods and set(TRAINED_IN_OLD_SPACE) & set(ways):
        raise ConfigError(
            f"space.folder: expected the old extractor's space, whose shared parts ({', '.join(methods)}) take part in "
            f"the training, got none; or leave {', '.join(TRAINED_IN_OLD_SPACE)} out of upgrade.ways"
        )
    return extractor.space


def _existing_heads(given: UpgradeRecipe, extractor: CompatExtractor) -> dict[str, TaskHead]:
    heads = {}
    for head in given.heads:
        assert head.folder is not None  # the recipe was checked
        heads[head.name] = TaskHead.from_pretrained(head.folder)
        extractor.space.require_same(heads[head.name].space, "the old extractor", f"head {head.name!r}")
    return heads


def _check_shared(old: Sequence[str], new: Sequence[str]) -> None:
    shared = set(old) & set(new)
    if len(shared) < LEAST_CLASSES:
        raise DataError(
            f"upgrade: expected at least {LEAST_CLASSES} classes that old and new network have in common, got "
            f"{len(shared)}: {', '.join(old[:5])} ... and {', '.join(new[:5])} ..."
        )


def _old(recipe: ClassifierTransferRecipe, seed: int, upgrade: Upgrade, experiment: Experiment) -> _Old:
    extractor, space, heads = upgrade.extractor, upgrade.space, dict(upgrade.heads)
    if upgrade.old is not None:
        member = _train_old(recipe, seed, upgrade.old, experiment)
        assert member.head is not None
        extractor, heads = member.extractor, {upgrade.old.given.name: member.head}
        space = extractor.space
    assert extractor is not None
    assert space is not None
    for name, data in upgrade.data.items():
        if name not in heads:
            heads[name] = linear_probe(extractor, data, seed=seed)
    first = next(iter(heads.values()))
    on_new = _right(extractor, {"": first}, {"": upgrade.new.test})[""]
    return _Old(extractor, space, heads, _right(extractor, heads, upgrade.tests), on_new)


def _train_old(recipe: ClassifierTransferRecipe, seed: int, network: Network, experiment: Experiment) -> Member:
    training = replace(recipe.training, seed=seed, alignment="none", influence_weight=0.0, distillation_weight=0.0)
    space = build_space(with_common_classes(recipe.space, [network.data]), seed)
    member = build_member(network.given, space, network.data, seed)
    experiment.train_alone(f"seed{seed}-upgrade-old", member, training)
    return member


def _of_member(member: Member, heads: Mapping[str, TaskHead], seconds: float) -> _Way:
    assert member.head is not None
    return _Way(member.extractor, heads, member.extractor, member.head, seconds)


def _joined(upgrade: Upgrade, old: _Old, free: Member, seconds: float) -> _Way:
    start, heads = time.perf_counter(), list(old.heads.values())
    extractor = joined(free, upgrade.new.given, upgrade.new.data, old.extractor, heads)
    alone = _of_member(free, old.heads, seconds)
    return replace(alone, extractor=extractor, seconds=seconds + time.perf_counter() - start)


def _trained(way: str, training: TrainConfig, upgrade: Upgrade, old: _Old, experiment: Experiment) -> _Way:
    """A new network that is trained in the old space."""
    space, config = old.space, _settings(way, training)
    member = build_member(upgrade.new.given, space, upgrade.new.data, training.seed)
    name, reference = f"seed{training.seed}-upgrade-{way}", old.reference if _uses_old(config) else None
    fitted = experiment.train(name, space, [member], config, reference=reference)
    return _of_member(member, old.heads, fitted.seconds)


def _settings(way: str, training: TrainConfig) -> TrainConfig:
    if way == "compatible":
        return training
    weight = "influence_weight" if way == "bct" else "distillation_weight"
    return replace(training, **{**ALONE, weight: getattr(training, weight) or 1.0})


def _uses_old(training: TrainConfig) -> bool:
    return training.alignment != "none" or training.influence_weight > 0 or training.distillation_weight > 0


def _right(extractor: CompatExtractor, heads: Mapping[str, TaskHead], tests: Mapping[str, Images]) -> dict[str, Right]:
    """By head, over its test images; heads of the same images share a pass."""
    found: dict[str, Right] = {}
    for test in {id(tests[name]): tests[name] for name in heads}.values():
        group = {name: head for name, head in heads.items() if tests[name] is test}
        answers = recombination_matrix({"": extractor}, group, test, cross_space=True).predictions
        assert answers is not None
        for name, predicted, expected in zip(group, answers.predicted[0], answers.expected, strict=True):
            found[name] = np.where(expected < 0, -1, predicted == expected)
    return {name: found[name] for name in heads}


def _scores(way: _Way, upgrade: Upgrade, old: _Old) -> dict[str, Any]:
    right = _right(way.extractor, way.heads, upgrade.tests)
    test, known = upgrade.new.test, {name for head in old.heads.values() for name in head.class_names}
    own = _right(way.own_extractor, {"": way.own_head}, {"": test})[""]
    unseen = np.array([name not in known for name in test.class_names])[test.labels.numpy()]
    return {
        "cross": _accuracies(right),
        "flips": {name: _flips(old.right[name], answers) for name, answers in right.items()},
        "own": _accuracy(own),
        "own_new_classes": _accuracy(own[unseen]),
        "own_flips": _flips(old.right_on_new, own),
        "seconds": way.seconds,
        "labels": way.labels,
    }


def _accuracies(right: Mapping[str, Right]) -> dict[str, float | None]:
    return {name: _accuracy(answers) for name, answers in right.items()}


def _accuracy(right: Right) -> float | None:
    known = right[right >= 0]
    return float(known.mean()) if len(known) else None


def _flips(before: Right, after: Right) -> float:
    known = (before >= 0) & (after >= 0)
    return negative_flip_rate(before[known], after[known], np.ones(int(known.sum()), dtype=np.int64))


def _keep(experiment: Experiment, seed: int, upgrade: Upgrade, old: _Old, ways: Mapping[str, _Way]) -> None:
    """The parts of the old space, ready to be combined or published."""
    folder = f"seed{seed}"
    if upgrade.extractor is None:
        experiment.keep(f"{folder}/space", old.space)
        experiment.keep(f"{folder}/extractor-old", old.extractor)
        for name, head in old.heads.items():
            experiment.keep(f"{folder}/head-{name}", head)
    for name in ("joined", "compatible"):
        if name in ways:
            experiment.keep(f"{folder}/extractor-{name}", ways[name].extractor)
    if "compatible" in ways:
        experiment.keep(f"{folder}/head-{upgrade.new.given.name}", ways["compatible"].own_head)

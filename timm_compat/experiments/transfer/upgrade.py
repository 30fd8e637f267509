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
from timm_compat.experiments.build import build_member, build_space, with_common_classes
from timm_compat.experiments.engine import Experiment
from timm_compat.experiments.transfer.networks import ALONE, Network, Read, check_test
from timm_compat.experiments.transfer.recipe import FROZEN, ClassifierTransferRecipe
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.space import CompatSpace
from timm_compat.training.members import Images, Member, Reference
from timm_compat.vocabulary import listed

# By image 1 where the answer is right, 0 where it is wrong, -1 where the head knows no answer.
Right = NDArray[np.int64]
TRAINED_IN_OLD_SPACE = ("distilled", "bct", "compatible")
JOINED = ("classes", "joined", "joined_each")


@dataclass(frozen=True)
class _Old:
    """The old extractor, its heads, whether they answer right on their test images, and the first on the new ones."""

    extractor: CompatExtractor
    space: CompatSpace
    heads: Mapping[str, TaskHead]
    right: Mapping[str, Right]
    right_on_new: Right


@dataclass(frozen=True)
class _Way:
    """What one way of upgrading gives: an extractor for the heads or for each of them, and the new task's own pair."""

    extractor: CompatExtractor | Mapping[str, CompatExtractor]
    heads: Mapping[str, TaskHead]
    own_extractor: CompatExtractor
    own_head: TaskHead
    seconds: float
    labels: int = 0


class Upgrade:
    """What one seed starts from: the new network, the old one or existing parts of it, and images of the old heads.

    Args:
        recipe: with ``upgrade``.
        seed: of everything random.
        read: the images.

    Raises:
        CompatError: as data sets and parts raise it.
        ConfigError: nothing would tie a compatible network to an existing old one, or its space is not given.
        DataError: test images without two classes of a head, or old and new networks without two classes in common.
        SpaceMismatchError: an existing head of another space than the extractor.
    """

    def __init__(self, recipe: ClassifierTransferRecipe, seed: int, read: Read) -> None:
        assert recipe.upgrade is not None
        self.recipe, self.given, self.seed = recipe, recipe.upgrade, seed
        self.training = replace(recipe.training, seed=seed)
        self.new, old = Network.read("upgrade.new", self.given.new, read), self.given.old
        # By old head's name: images that it learned from, where there are any, and those that measure it. The first
        # head is the old network's own.
        self.data: dict[str, Images] = {}
        self.tests: dict[str, Images] = {}
        self.old = None if old is None else Network.read("upgrade.old", old, read)
        if self.old is not None:
            self.data[self.old.given.name], self.tests[self.old.given.name] = self.old.data, self.old.test
        self.extractor, self.space = self._existing_extractor()
        for head in self.given.heads:
            self.tests[head.name] = read(f"test of head {head.name!r}", head.test, old or self.given.new)
            if head.data is not None:
                self.data[head.name] = read(f"head {head.name!r}", head.data, old or self.given.new)
        self.heads = {} if self.extractor is None else self._existing_heads(self.extractor)
        class_names = {name: (self.heads.get(name) or self.data[name]).class_names for name in self.tests}
        for name, names in class_names.items():
            check_test(f"head {name!r}", names, self.tests[name])
        _check_shared(next(iter(class_names.values())), self.new.data.class_names)

    def measure(self, experiment: Experiment) -> dict[str, Any]:
        """All ways as JSON values.

        Returns:
            "old" and "ceiling": accuracies by old head; "own": accuracy of the unconstrained new network; "ways": by
            name "cross" and "flips" by old head, "own", "own_new_classes", "own_flips", "seconds", "labels". Accuracies
            and shares in [0, 1]; the ceiling is a head retrained with labels on the unconstrained new extractor, and
            lacks heads whose training images are not given.
        """
        self.features = experiment.features
        old = self._old(experiment)
        folder = f"seed{self.seed}-upgrade-unconstrained"
        free, seconds = self.new.train_alone(folder, old.space, self.training, experiment)
        start = time.perf_counter()
        retrained = {name: self.features.probe(free.extractor, data, self.seed) for name, data in self.data.items()}
        took, labels = time.perf_counter() - start, sum(len(data) for data in self.data.values())
        ways = {
            "unconstrained": _of_member(free, old.heads, seconds),
            "retrained": replace(_of_member(free, retrained, seconds + took), labels=labels),
        }
        for way in self.given.chosen_ways:
            if way in JOINED:
                ways[way] = self._joined(way, old, free, seconds)
            elif way not in ways:
                ways[way] = self._trained(way, old, experiment)
        self._keep(experiment, old, ways)
        scores = {way: self._scores(found, old) for way, found in ways.items()}
        return {
            "old": _accuracies(old.right),
            "own": scores["unconstrained"]["own"],
            "ceiling": scores["retrained"]["cross"],
            "ways": {way: scores[way] for way in self.given.chosen_ways},
        }

    def _existing_extractor(self) -> tuple[CompatExtractor | None, CompatSpace | None]:
        if self.given.extractor is None:
            return None, None
        extractor = CompatExtractor.from_pretrained(self.given.extractor, trainable=FROZEN)
        folder, methods, ways = self.recipe.space.folder, extractor.space.methods, self.given.chosen_ways
        if "compatible" in ways and not methods and not _uses_old(self.training):
            raise ConfigError(
                "training.alignment: expected l2 or contrastive, as the old space shares no method; got none"
            )
        if folder is not None:
            space = CompatSpace.from_pretrained(folder)
            space.require_same(extractor.space, "space.folder", "the old extractor")
            return extractor, space
        if methods and set(TRAINED_IN_OLD_SPACE) & set(ways):
            raise ConfigError(
                f"space.folder: expected the old extractor's space, whose shared parts ({', '.join(methods)}) take "
                f"part in the training, got none; or leave {', '.join(TRAINED_IN_OLD_SPACE)} out of upgrade.ways"
            )
        return extractor, extractor.space

    def _existing_heads(self, extractor: CompatExtractor) -> dict[str, TaskHead]:
        heads: dict[str, TaskHead] = {}
        for head in self.given.heads:
            assert head.folder is not None  # the recipe was checked
            heads[head.name] = TaskHead.from_pretrained(head.folder)
            extractor.space.require_same(heads[head.name].space, "the old extractor", f"head {head.name!r}")
        return heads

    def _old(self, experiment: Experiment) -> _Old:
        extractor, space, heads = self.extractor, self.space, dict(self.heads)
        if self.old is not None:
            member = self._train_old(self.old, experiment)
            assert member.head is not None
            extractor, heads = member.extractor, {self.old.given.name: member.head}
            space = extractor.space
        assert extractor is not None
        assert space is not None
        for name, data in self.data.items():
            if name not in heads:
                heads[name] = self.features.probe(extractor, data, self.seed)
        on_new = self._right(extractor, {"": next(iter(heads.values()))}, {"": self.new.test})[""]
        return _Old(extractor, space, heads, self._right(extractor, heads, self.tests), on_new)

    def _train_old(self, network: Network, experiment: Experiment) -> Member:
        if network.frozen:
            return network.train_alone("", self.recipe.space, self.training, experiment)[0]
        training = replace(self.training, alignment="none", influence_weight=0.0, distillation_weight=0.0)
        space = build_space(with_common_classes(self.recipe.space, [network.data]), self.seed)
        member = build_member(network.given, space, network.data, self.seed)
        experiment.train_alone(f"seed{self.seed}-upgrade-old", member, training)
        return member

    def _joined(self, way: str, old: _Old, free: Member, seconds: float) -> _Way:
        """The unconstrained network in the old space: without an image, on its own images, or on those of each head."""
        start, heads = time.perf_counter(), list(old.heads.values())
        made: CompatExtractor | dict[str, CompatExtractor]
        if way == "joined_each":
            known = {name: self.data.get(name, self.new.data) for name in old.heads}
            made = {
                name: self.new.joined(free, known[name], old.space, old.extractor, [head], self.features)
                for name, head in old.heads.items()
            }
        else:
            images = self.new.data if way == "joined" else None
            made = self.new.joined(free, images, old.space, old.extractor, heads, self.features)
        alone = _of_member(free, old.heads, seconds)
        return replace(alone, extractor=made, seconds=seconds + time.perf_counter() - start)

    def _trained(self, way: str, old: _Old, experiment: Experiment) -> _Way:
        """A new network that is trained in the old space."""
        config = _settings(way, self.training)
        member = build_member(self.new.given, old.space, self.new.data, self.seed)
        reference = Reference(old.extractor, next(iter(old.heads.values()))) if _uses_old(config) else None
        name = f"seed{self.seed}-upgrade-{way}"
        fitted = experiment.train(name, old.space, [member], config, reference=reference)
        return _of_member(member, old.heads, fitted.seconds)

    def _right(
        self, extractor: CompatExtractor, heads: Mapping[str, TaskHead], tests: Mapping[str, Images]
    ) -> dict[str, Right]:
        """By head, over its test images; heads of the same images share a pass.

        None of a head that reads another number of features is known to be right.
        """
        if extractor.trainable != "full":
            return {name: self._right_of(extractor, head, tests[name]) for name, head in heads.items()}
        found: dict[str, Right] = {}
        for test in {id(tests[name]): tests[name] for name in heads}.values():
            group = {name: head for name, head in heads.items() if tests[name] is test}
            answers = recombination_matrix({"": extractor}, group, test, cross_space=True).predictions
            assert answers is not None
            for name, predicted, expected in zip(group, answers.predicted[0], answers.expected, strict=True):
                found[name] = np.where(expected < 0, -1, predicted == expected)
        return {name: found[name] for name in heads}

    def _right_of(self, extractor: CompatExtractor, head: TaskHead, test: Images) -> Right:
        if extractor.num_features != head.space.feature_dim:
            return np.full(len(test), -1)
        found: Right = self.features.right(extractor, head, test).numpy()
        return found

    def _scores(self, way: _Way, old: _Old) -> dict[str, Any]:
        if isinstance(way.extractor, Mapping):
            parts = {name: (extractor, {name: way.heads[name]}) for name, extractor in way.extractor.items()}
            right = {name: self._right(*pair, self.tests)[name] for name, pair in parts.items()}
        else:
            right = self._right(way.extractor, way.heads, self.tests)
        test, known = self.new.test, {name for head in old.heads.values() for name in head.class_names}
        own = self._right(way.own_extractor, {"": way.own_head}, {"": test})[""]
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

    def _keep(self, experiment: Experiment, old: _Old, ways: Mapping[str, _Way]) -> None:
        """The parts of the old space, ready to be combined or published."""
        parts: dict[str, Any] = {}
        if self.extractor is None:
            parts = {"space": old.space, "extractor-old": old.extractor}
            parts |= {f"head-{name}": head for name, head in old.heads.items()}
        parts |= {f"extractor-{way}": ways[way].extractor for way in ("joined", "compatible") if way in ways}
        if "compatible" in ways:
            parts[f"head-{self.new.given.name}"] = ways["compatible"].own_head
        for name, part in parts.items():
            experiment.keep(f"seed{self.seed}/{name}", part)


def _check_shared(old: Sequence[str], new: Sequence[str]) -> None:
    shared = set(old) & set(new)
    if len(shared) < LEAST_CLASSES:
        raise DataError(
            f"upgrade: expected at least {LEAST_CLASSES} classes that old and new network have in common, got "
            f"{len(shared)}: {listed(old, 5)} / {listed(new, 5)}"
        )


def _of_member(member: Member, heads: Mapping[str, TaskHead], seconds: float) -> _Way:
    assert member.head is not None
    return _Way(member.extractor, heads, member.extractor, member.head, seconds)


def _settings(way: str, training: TrainConfig) -> TrainConfig:
    if way == "compatible":
        return training
    weight = "influence_weight" if way == "bct" else "distillation_weight"
    return replace(training, **{**ALONE, weight: getattr(training, weight) or 1.0})


def _uses_old(training: TrainConfig) -> bool:
    return training.alignment != "none" or training.influence_weight > 0 or training.distillation_weight > 0


def _accuracies(right: Mapping[str, Right]) -> dict[str, float | None]:
    return {name: _accuracy(answers) for name, answers in right.items()}


def _accuracy(right: Right) -> float | None:
    known = right[right >= 0]
    return float(known.mean()) if len(known) else None


def _flips(before: Right, after: Right) -> float | None:
    known = (before >= 0) & (after >= 0)
    if not known.any():
        return None
    return negative_flip_rate(before[known], after[known], np.ones(int(known.sum()), dtype=np.int64))

"""More than two members: several architectures in one space, a chain of later additions, several data sets."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import timm_compat as tc
from studies.pairs import accuracies
from studies.tasks import Scale, extractor, first, load, shuffled
from timm_compat.evaluation.baselines import measure_baselines

CHAIN = 10
DIGITS = ("MNIST", "USPS")


@dataclass(frozen=True)
class Shared:
    """What the members of a group share.

    Attributes:
        methods: of the space.
        settings: of ``TrainConfig``, beyond the scale's.
    """

    methods: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


class Architectures(Shared):
    """All backbones of the scale, each with its own part of the images, all classes."""


@dataclass(frozen=True)
class Chain:
    """The first member makes the space; nine more are added one after another, each knowing the first only.

    Attributes:
        methods: of the space.
        align: whether each later member is aligned with the first.
    """

    methods: tuple[str, ...] = ("common_classes",)
    align: bool = False


class DataSets(Shared):
    """MNIST and USPS, the same ten classes in two domains."""


def architectures(group: Architectures, scale: Scale, seed: int) -> dict[str, Any]:
    """Accuracies by "extractor-head", named by their place among the scale's backbones, and what mends exchanged pairs.

    The baselines are fitted on the first member's images, with labels where they need them.
    """
    train, test = load(scale, seed)
    space = _space(group.methods, train, seed)
    parts = _parts(train, len(scale.backbones), scale.images)
    members = [_member(str(n), name, space, parts[n], seed) for n, name in enumerate(scale.backbones)]
    start = time.perf_counter()
    tc.fit(space, members, scale.training(seed, **group.settings), progress=None)
    seconds = time.perf_counter() - start
    extractors = {member.name: member.extractor.cpu() for member in members}
    heads = {member.name: member.head.cpu() for member in members}
    found = measure_baselines(extractors, heads, parts[0], test)
    own = np.eye(len(members), dtype=bool)
    mended = {baseline.name: baseline.recombined_accuracy(own) for baseline in found}
    return {**_measured(members, test), "mended": mended, "backbones": list(scale.backbones), "seconds": seconds}


def chain(group: Chain, scale: Scale, seed: int) -> dict[str, Any]:
    """Accuracies by "extractor-head"; members are named by the order in which they came."""
    train, test = load(scale, seed)
    space = _space(group.methods, train, seed)
    parts = _parts(train, CHAIN, scale.images)
    members: list[tc.Member] = []
    reference = None
    start = time.perf_counter()
    for number, part in enumerate(parts):
        backbone = scale.backbones[number % 2]
        member = _member(str(number), backbone, space, part, seed)
        settings = {"alignment": "contrastive"} if reference is not None and group.align else {}
        tc.fit(
            space, [member], scale.training(seed, **settings), progress=None, reference=reference if settings else None
        )
        reference = reference or tc.Reference(member.extractor, member.head)
        members.append(member)
    return {**_measured(members, test), "seconds": time.perf_counter() - start}


def data_sets(group: DataSets, scale: Scale, seed: int) -> dict[str, Any]:
    """Accuracies by "extractor-head", on the head's own domain."""
    sets = {
        name: [_digits(name, Path(str(scale.digits_root)), split) for split in ("train", "test")] for name in DIGITS
    }
    space = _space(group.methods, sets["MNIST"][0], seed)
    members = [
        _member(name, scale.backbones[0], space, first(shuffled(sets[name][0], seed), scale.images), seed)
        for name in DIGITS
    ]
    start = time.perf_counter()
    config = scale.training(seed, **{"hflip": 0.0, "random_crop": 1, **group.settings})
    tc.fit(space, members, config, progress=None)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {}
    extractors = {member.name: member.extractor for member in members}
    for member in members:
        test = first(sets[member.name[1:]][1], scale.test_images)
        matrix = tc.recombination_matrix(extractors, {member.name: member.head}, test)
        found |= {f"{row[1:]}-{member.name[1:]}": float(matrix.accuracy[n, 0]) for n, row in enumerate(matrix.rows)}
    return {"all": found, "seconds": seconds}


def _digits(name: str, root: Path, split: str) -> tc.data.ArrayDataset:
    """As torchvision stores it, or as NAME.npz in lower case with arrays train_x, train_y, test_x and test_y."""
    file = root / f"{name.lower()}.npz"
    data = tc.data.load_dataset("npz", file, split) if file.is_file() else tc.data.load_dataset(name, root, split)
    return tc.data.ArrayDataset(data.images, data.labels, tuple(str(number) for number in range(10)))


def _space(methods: tuple[str, ...], train: tc.data.ArrayDataset, seed: int) -> tc.CompatSpace:
    vocabulary = train.class_names if {"common_classes", "simplex"} & set(methods) else ()
    return tc.CompatSpace(64, vocabulary, methods, seed=seed)


def _parts(train: tc.data.ArrayDataset, count: int, images: int) -> list[tc.data.ArrayDataset]:
    size = min(images, len(train) // count)
    return [train.subset(torch.arange(number * size, (number + 1) * size)) for number in range(count)]


def _member(name: str, backbone: str, space: tc.CompatSpace, data: tc.data.ArrayDataset, seed: int) -> tc.Member:
    torch.manual_seed(seed + (int(name) if name.isdecimal() else 0))
    return tc.Member(f"m{name}", extractor(backbone, space, data), tc.TaskHead(space, data.class_names), data)


def _measured(members: list[tc.Member], test: tc.data.ArrayDataset) -> dict[str, Any]:
    heads = {member.name.removeprefix("m"): member.head for member in members}
    extractors = {member.name.removeprefix("m"): member.extractor for member in members}
    found = accuracies(extractors, heads, test, list(test.class_names))
    return {"all": found["all"], "chance": 1 / len(test.class_names)}

"""Two members trained in one space: native and recombined accuracy, over all, common and private classes."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

import timm_compat as tc
from studies.tasks import Scale, extractor, load, own_images
from timm_compat.evaluation.post_hoc import fitted_classes, least_squares

SCOPES = ("all", "common", "private")


@dataclass(frozen=True)
class Pair:
    """What two members share.

    Attributes:
        methods: of the space.
        overlap: a key of ``OVERLAPS``.
        settings: of ``TrainConfig``, beyond the scale's.
        space: of ``CompatSpace``, beyond methods and classes.
        backbones: places among the scale's backbones.
        arguments: of both extractors, such as ``out_index``.
        head: of both task heads, such as ``depth``.
        random_heads: whether task heads start at random instead of zero.
        join: whether B is joined to A afterwards, on all images, without labels.
    """

    methods: tuple[str, ...] = ()
    overlap: str = "10 of 10"
    settings: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    backbones: tuple[int, int] = (0, 1)
    arguments: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    random_heads: bool = False
    join: bool = False


def measure(pair: Pair, scale: Scale, seed: int) -> dict[str, Any]:
    """Train and measure one pair."""
    train, test = load(scale, seed)
    own = own_images(scale, train, pair.overlap, seed)
    common = [name for name in own["a"].class_names if name in own["b"].class_names]
    vocabulary = common if {"common_classes", "simplex"} & set(pair.methods) else ()
    space = tc.CompatSpace(**{"feature_dim": 64, **pair.space}, class_names=vocabulary, methods=pair.methods, seed=seed)
    torch.manual_seed(seed)
    members = []
    for (name, data), place in zip(own.items(), pair.backbones, strict=True):
        head = tc.TaskHead(space, data.class_names, **pair.head)
        if pair.random_heads:
            head.classifier.reset_parameters()
        backbone = extractor(scale.backbones[place], space, data, **pair.arguments)
        members.append(tc.Member(name, backbone, head, data))
    start = time.perf_counter()
    tc.fit(space, members, scale.training(seed, **pair.settings), progress=None)
    seconds = time.perf_counter() - start
    extractors = {member.name: member.extractor for member in members}
    heads = {member.name: member.head for member in members}
    if pair.join:
        pool = torch.cat([data.images for data in own.values()])
        size = {"img_size": max(32, pool.shape[-1])}
        extractors["b"] = tc.join(
            space, extractors["b"].backbone.model, pool, reference=extractors["a"], heads=list(heads.values()), **size
        )
    found = accuracies(extractors, heads, test, common)
    if space.level == "pooled":
        found |= repairs(extractors, heads, own, test)
    return {**found, "seconds": seconds}


def accuracies(extractors: dict, heads: dict, test: tc.data.ArrayDataset, common: list[str]) -> dict[str, Any]:
    """By scope, the accuracy of every extractor under every head, {"a-b": extractor a under head b}, and chance."""
    with torch.no_grad():
        features = {name: tc.extract_features(network, test) for name, network in extractors.items()}
        logits = {f"{row}-{name}": head(features[row]).cpu() for row in features for name, head in heads.items()}
    result: dict[str, Any] = {scope: {} for scope in SCOPES}
    for pair, scores in logits.items():
        names = list(heads[pair.partition("-")[2]].class_names)
        for scope in SCOPES:
            chosen = [name for name in names if scope == "all" or (name in common) == (scope == "common")]
            if chosen:
                result[scope][pair] = _share(scores, names, test, chosen)
    result["chance"] = {column: 1 / len(head.class_names) for column, head in heads.items()}
    return result


def _share(scores: torch.Tensor, names: list[str], test: tc.data.ArrayDataset, chosen: list[str]) -> float:
    wanted = torch.tensor([names.index(name) if name in chosen else -1 for name in test.class_names])[test.labels]
    return float((scores.argmax(dim=1) == wanted)[wanted >= 0].double().mean())


def repairs(extractors: dict, heads: dict, own: dict, test: tc.data.ArrayDataset) -> dict[str, Any]:
    """What would mend the exchanged pairs: a linear map fitted without labels, or a head retrained with labels.

    If the map mends a pair, the foreign extractor holds what the head asks for, in other directions; what not even a
    retrained head reaches, it does not hold.
    """
    found: dict[str, Any] = {"mapped": {}, "retrained": {}}
    for row, column in ("ab", "ba"):
        data, head = own[column], heads[column].cpu()
        theirs, mine = (tc.extract_features(extractors[name], data).cpu() for name in (row, column))
        known = test.of_classes(data.class_names)
        foreign = tc.extract_features(extractors[row], known).cpu()
        with torch.no_grad():
            mapped = head(least_squares(theirs, mine)(foreign)).argmax(dim=1)
        positions = torch.tensor([head.class_names.index(name) for name in known.class_names])[known.labels]
        retrained = torch.from_numpy(fitted_classes(theirs, data.labels, foreign))
        found["mapped"][f"{row}-{column}"] = float((mapped == positions).double().mean())
        found["retrained"][f"{row}-{column}"] = float((retrained == known.labels).double().mean())
    return found

"""Frozen backbones, trained apart, joined to each other's spaces from unlabelled images."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import timm_compat as tc
from studies.tasks import Scale, extractor, first, load, own_images
from timm_compat.evaluation.baselines import RELATIVE_PENALTY
from timm_compat.evaluation.post_hoc import fitted_classes, least_squares, procrustes, relative_features

SIZES = (30, 300, 1000)
SOURCES = ("head's", "joiner's", "another data set")
PAIRS = ((0, 1), (1, 0), (2, 0), (3, 1))  # joining backbone, backbone that the head belongs to
ADAPTER_EPOCHS = 30
ANCHORS = 256


@dataclass(frozen=True)
class Join:
    """Four backbones; those of even place learn the first seven classes, the others the last seven.

    Attributes:
        feature_dim: of every space.
        pairs: joining backbone and owner of the head, by place.
        sizes: numbers of unlabelled images, beside all.
        methods: whether further methods than ``tc.join`` are measured, on all images.
    """

    feature_dim: int = 64
    pairs: tuple[tuple[int, int], ...] = PAIRS
    sizes: tuple[int, ...] = SIZES
    methods: bool = True


@dataclass(frozen=True)
class Trained:
    """A network that was trained alone."""

    extractor: tc.CompatExtractor
    head: tc.TaskHead
    images: tc.data.ArrayDataset
    test: tc.data.ArrayDataset


def measure(join: Join, scale: Scale, seed: int) -> dict[str, Any]:
    """Rows {joiner, owner, source, images, method, accuracy, ceiling, seconds}."""
    networks = [_alone(place, join, scale, seed) for place in range(1 + max(max(pair) for pair in join.pairs))]
    rows = []
    for joining, owner in join.pairs:
        rows += [
            {"joiner": scale.backbones[joining], "owner": scale.backbones[owner], **row}
            for row in _joined(networks[joining], networks[owner], join, scale, seed)
        ]
    return {"rows": rows}


def _alone(place: int, join: Join, scale: Scale, seed: int) -> Trained:
    train, test = load(scale, seed)
    data = own_images(scale, train, "4 of 7", seed)["ab"[place % 2]]
    space = tc.CompatSpace(join.feature_dim)
    torch.manual_seed(seed)
    network = extractor(scale.backbones[place], space, data)
    head = tc.TaskHead(space, data.class_names)
    tc.fit(
        space, [tc.Member("alone", network, head, data)], scale.training(seed, head_weight_decay=0.05), progress=None
    )
    space.finalize(reference=network.digest())
    return Trained(network.cpu().eval(), head.cpu().eval(), data, test.of_classes(data.class_names))


def _joined(joining: Trained, owner: Trained, join: Join, scale: Scale, seed: int):
    """Yields rows."""
    backbone, test = joining.extractor.backbone, owner.test
    inputs, outputs = _pooled(joining, owner.images), _pooled(joining, test)
    ceiling = _share(fitted_classes(inputs, owner.images.labels, outputs), test)
    native = _share(owner.head(tc.extract_features(owner.extractor, test)).argmax(dim=1), test)
    apart = _share(owner.head(tc.extract_features(joining.extractor, test)).argmax(dim=1), test)
    yield {"source": "none", "images": 0, "method": "head's own extractor", "accuracy": native, "ceiling": ceiling}
    yield {"source": "none", "images": 0, "method": "nothing", "accuracy": apart, "ceiling": ceiling}
    for source, pool, sizes in _pools(joining, owner, join, scale):
        for size in sizes:
            images = first(pool, size).images
            start = time.perf_counter()
            joined = tc.join(
                owner.extractor.space, backbone.model, images, reference=owner.extractor, heads=[owner.head],
                img_size=max(32, images.shape[-1]),
            )  # fmt: skip
            seconds = time.perf_counter() - start
            with torch.no_grad():
                accuracy = _share(owner.head(joined.interface(outputs)).argmax(dim=1), test)
            yield {
                "source": source, "images": len(images), "method": "joined", "accuracy": accuracy,
                "ceiling": ceiling, "seconds": seconds, "shift": joined.fit_report.shift,
            }  # fmt: skip
    if join.methods:
        for method, accuracy, seconds in _others(joining, owner, scale, seed):
            row = {"source": "head's", "images": len(owner.images), "method": method, "accuracy": accuracy}
            yield {**row, "ceiling": ceiling, "seconds": seconds}


def _pools(joining: Trained, owner: Trained, join: Join, scale: Scale):
    """Yields where images come from, the images, and how many of them to try."""
    sizes = [size for size in join.sizes if size < len(owner.images)]
    yield "head's", owner.images, [*sizes, len(owner.images)]
    if not join.methods:
        return
    few = [size for size in sizes if size >= SIZES[-1]] or [len(owner.images)]
    yield "joiner's", joining.images, few
    if scale.digits_root is not None:
        yield "another data set", first(_digits(scale, owner.images), few[0]), few


def _digits(scale: Scale, like: tc.data.ArrayDataset) -> tc.data.ArrayDataset:
    digits = tc.data.load_dataset("MNIST", scale.digits_root, "train")
    images = torch.nn.functional.pad(digits.images[: SIZES[-1]], (2, 2, 2, 2))
    return tc.data.ArrayDataset(images, digits.labels[: SIZES[-1]], digits.class_names).with_channels(
        like.images.shape[1]
    )


def _others(joining: Trained, owner: Trained, scale: Scale, seed: int):
    """Yields name, accuracy and seconds of every other method, on all the images of the head's own task."""
    space_theirs = tc.extract_features(joining.extractor, owner.images)
    mine = tc.extract_features(owner.extractor, owner.images)
    foreign = tc.extract_features(joining.extractor, owner.test)
    for name, fitted in (("least squares between spaces", least_squares), ("orthogonal Procrustes", procrustes)):
        start = time.perf_counter()
        mapped = fitted(space_theirs, mine)(foreign)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            yield name, _share(owner.head(mapped).argmax(dim=1), owner.test), seconds
    yield "relative representations (labels, new head)", *_relative(joining, owner, space_theirs, mine, foreign, seed)
    for name, methods, settings in (
        ("trained adapter, common classes", ("common_classes",), {}),
        ("trained adapter, alignment", (), {"alignment": "contrastive"}),
        ("trained adapter, both", ("common_classes",), {"alignment": "contrastive"}),
    ):
        yield name, *_adapted(joining, owner, scale, seed, methods, settings)


def _relative(joining: Trained, owner: Trained, theirs: Tensor, mine: Tensor, foreign: Tensor, seed: int):
    start = time.perf_counter()
    anchors = torch.randperm(len(mine), generator=torch.Generator().manual_seed(seed))[:ANCHORS]
    train, test = relative_features(mine, mine[anchors]), relative_features(foreign, theirs[anchors])
    penalty = RELATIVE_PENALTY / len(train)
    predicted = fitted_classes(train, owner.images.labels, test, standardize=False, penalty=penalty)
    return _share(predicted, owner.test), time.perf_counter() - start


def _adapted(joining: Trained, owner: Trained, scale: Scale, seed: int, methods: tuple[str, ...], settings: dict):
    """Both backbones frozen, both interfaces and heads trained together on cached features."""
    common = [name for name in owner.head.class_names if name in joining.head.class_names]
    space = tc.CompatSpace(owner.extractor.space.feature_dim, common if methods else (), methods, seed=seed)
    torch.manual_seed(seed)
    size = max(32, owner.images.images.shape[-1])
    members = [
        tc.Member(
            name,
            tc.create_extractor(one.extractor.backbone.model, space, trainable="adapter", img_size=size),
            tc.TaskHead(space, one.head.class_names),
            one.images,
        )
        for name, one in (("joiner", joining), ("owner", owner))
    ]
    plain = {"random_crop": 0, "hflip": 0.0, "epochs": ADAPTER_EPOCHS}
    start = time.perf_counter()
    tc.fit(space, members, scale.training(seed, **plain, **settings), progress=None)
    seconds = time.perf_counter() - start
    network, head = members[0].extractor.cpu(), members[1].head.cpu()
    with torch.no_grad():
        return _share(head(tc.extract_features(network, owner.test)).argmax(dim=1), owner.test), seconds


@torch.no_grad()
def _pooled(network: Trained, data: tc.data.ArrayDataset) -> Tensor:
    extractor = network.extractor
    return torch.cat([extractor.backbone(extractor.preprocess(part)) for part in data.images.split(500)])


def _share(predicted: Any, data: tc.data.ArrayDataset) -> float:
    return float((torch.as_tensor(predicted) == data.labels).double().mean())

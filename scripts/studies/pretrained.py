"""Heads of one pretrained network on another: by classes in common, by photos, by both, and by what else there is."""

import itertools
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from studies.photographs import IMAGENET, STANDARD, Network, Source, counts, network, side
from timm_compat.evaluation.baselines import RELATIVE_PENALTY
from timm_compat.evaluation.post_hoc import LinearMap, fitted_classes, least_squares, procrustes, relative_features
from timm_compat.joining.closed_form import ALONE, Centre, ClassRows, ClosedForm
from timm_compat.joining.evidence import HELD_OUT_EVERY
from timm_compat.joining.report import divergence, stated_interval
from timm_compat.methods.ridge import Moments

SIZES = (30, 300, 1000)
LARGE = 600  # photos of a kind, from which on several numbers of them are tried
IMAGENET_PHOTOS = 300  # the others test ImageNet's head
FEW_CLASSES = (30, 100, 300)  # in common, beside all
LEAST_PHOTOS = 20  # for maps that choose by held-out photos

Row = dict[str, Any]


@dataclass(frozen=True)
class Under:
    """Backbone ``new`` under all heads of ``old``."""

    new: str
    old: str
    source: Source = field(repr=False)

    def settings(self) -> dict[str, Any]:
        """What must agree for a kept cell to stand."""
        sides = {name: side(self.source, name) for name in (self.new, self.old)}
        return {"photos": counts(self.source), "img_size": sides}


def rows(source: Source) -> dict[str, Under]:
    """All pairs of networks."""
    pairs = itertools.permutations(source.networks(), 2)
    return {f"{new} under {old}": Under(new, old, source) for new, old in pairs}


@torch.no_grad()
def measure(under: Under, seed: int) -> dict[str, Any]:
    """One cell.

    Its "rows" are the ways from one network's features to the other's heads: {way, pool (kind of photos, or None),
    part (of them), photos, classes, accuracy and agreement with the head's own network by kind of head, tested (number
    of photos, by kind), seconds (of the processor, for the map), stated ([share, low, high, photos,
    optimism of the head] by kind of head, what ``join`` would tell of agreement)}. The first draw has accuracies
    without any map beside them.
    """
    pair = _Pair(network(under.source, under.new), network(under.source, under.old))
    found: dict[str, Any] = {"rows": list(_first_rows(pair) if seed == 0 else _drawn_rows(pair, seed))}
    if seed == 0:
        found |= _without_maps(pair)
    return {**found, "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


@dataclass(frozen=True)
class Pool:
    """Unlabelled photos that both networks see: of a kind, at these places, of its "train" or its "test" part."""

    kind: str
    places: Tensor
    part: str = "train"


@dataclass(frozen=True)
class _Pair:
    """Two networks on the same photos."""

    new: Network
    old: Network

    def classes(self) -> ClassRows:
        """Rows of the two classifiers."""
        return _class_rows(self.new.weight, self.old.weight)

    def pooled(self, pool: Pool) -> tuple[Tensor, Tensor]:
        """Features of a pool in both."""
        x, y = (one.photos[pool.kind].features[pool.places] for one in (self.new, self.old))
        return x, y

    def test_places(self, kind: str, pool: Pool | None = None) -> Tensor:
        """Photos that test a head, without those of the pool."""
        places = self.old.photos[kind].places("test")
        if pool is None or pool.kind != kind:
            return places
        return places[~torch.isin(places, pool.places)]

    def own_answers(self, kind: str, places: Tensor) -> Tensor:
        """Of a head on its own network."""
        return self.old.heads[kind](self.old.photos[kind].features[places]).argmax(dim=1)


def _class_rows(new: Tensor, old: Tensor) -> ClassRows:
    return ClassRows(*(weight.double() - weight.double().mean(dim=0) for weight in (new, old)))


def _first_rows(pair: _Pair) -> Iterator[Row]:
    """Everything, for the first draw of photos."""
    classes = pair.classes()
    for count in FEW_CLASSES:
        yield _joined(pair, None, _some(pair, count))
    yield _joined(pair, None, classes)
    largest = _largest_kind(pair)
    heads = [one.heads[largest].weight for one in (pair.new, pair.old)]
    yield _joined(pair, None, _class_rows(*heads)) | {"way": f"joined by the classes of {largest}"}
    strength, last = None, list(pair.new.photos)[-1]
    for pool in _pools(pair, 0):
        is_small = len(pool.places) == SIZES[0]
        yield _joined(pair, pool, classes, has_trial=not is_small)
        yield from _fitted(pair, pool, {"Procrustes": procrustes})
        if is_small or len(pool.places) == SIZES[2]:
            continue
        strength = strength or _strength(pair, pool)
        yield _joined(pair, pool, None, rotation_alone=strength) | {"way": "photos alone", "strength": strength}
        if pool.kind in (IMAGENET, last) or (pool.kind == largest and len(pool.places) != SIZES[1]):
            yield from _fitted(pair, pool, {"ridge": least_squares})
        yield from _relative(pair, pool)
        if pool.kind == largest and len(pool.places) == SIZES[1]:
            yield _joined(pair, pool, _some(pair, FEW_CLASSES[1]))
    yield from _fresh_rows(pair, 0)


def _drawn_rows(pair: _Pair, seed: int) -> Iterator[Row]:
    """What is measured for further draws of photos."""
    for pool in _pools(pair, seed):
        yield _joined(pair, pool, pair.classes(), has_trial=len(pool.places) > SIZES[0])
        yield from _fitted(pair, pool, {"Procrustes": procrustes})
        yield from _relative(pair, pool)
    yield from _fresh_rows(pair, seed)


def _fresh_rows(pair: _Pair, seed: int) -> Iterator[Row]:
    """What is stated where the head has not learned from the join's photos, and what is true."""
    for kind in pair.new.photos:
        if kind != IMAGENET:
            yield _trial(pair, _fresh(pair, kind, seed), pair.classes())


def _pools(pair: _Pair, seed: int) -> Iterator[Pool]:
    """Photos of every kind: 30, 300, 1,000 where there are many, and all; further draws only of 30 and 300."""
    for kind, photos in pair.new.photos.items():
        places = _shuffled(photos.places("train"), seed)
        if kind == IMAGENET:
            yield Pool(kind, places[: min(IMAGENET_PHOTOS, len(places) // 2)])
            continue
        sizes = [size for size in SIZES if size < len(places)] if len(places) >= LARGE else []
        sizes = sizes[:2] if seed else [*sizes, len(places)]
        yield from (Pool(kind, places[:size]) for size in sizes)


def _fresh(pair: _Pair, kind: str, seed: int) -> Pool:
    """Photos of a kind that its head has not learned from; at most half of those that test it."""
    places = _shuffled(pair.new.photos[kind].places("test"), seed)
    return Pool(kind, places[: min(SIZES[1], len(places) // 2)], "test")


def _shuffled(places: Tensor, seed: int) -> Tensor:
    return places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))]


def _largest_kind(pair: _Pair) -> str:
    """The kind with most classes beside ImageNet."""
    kinds = [kind for kind in pair.old.heads if kind != IMAGENET]
    return max(kinds, key=lambda kind: len(pair.old.heads[kind].bias))


def _some(pair: _Pair, count: int) -> ClassRows:
    chosen = _shuffled(torch.arange(len(pair.new.weight)), 0)[:count]
    return _class_rows(pair.new.weight[chosen], pair.old.weight[chosen])


def _closed_form(pair: _Pair, pool: Pool | None, classes: ClassRows | None, every: Tensor | None = None) -> ClosedForm:
    """As ``join`` sets it up in the space that ``split`` makes of the old network, whose features have mean 0 there."""
    new_mean, origin = pair.new.mean, torch.zeros(pair.old.weight.shape[1]).double()
    is_known = new_mean is not None and (pool is None or pair.old.mean is not None)
    centre = Centre(new_mean.double(), origin) if is_known else None
    if pool is None:
        return ClosedForm(None, classes, centre)
    x, y = pair.pooled(pool)
    if every is not None:
        x, y = x[every], y[every]
    sums = Moments(x.shape[1], y.shape[1])
    sums.add(x, y - _offset(pair))
    return ClosedForm(sums, classes, centre)


def _offset(pair: _Pair) -> Tensor:
    mean = pair.old.mean
    return torch.zeros(pair.old.weight.shape[1]) if mean is None else mean


def _map(pair: _Pair, form: ClosedForm, rotation_alone: float = ALONE[0]) -> LinearMap:
    weight, bias = form.map(rotation_alone)
    return LinearMap(weight, bias + _offset(pair))


def _joined(
    pair: _Pair,
    pool: Pool | None,
    classes: ClassRows | None,
    *,
    has_trial: bool = False,
    rotation_alone: float = ALONE[0],
) -> Row:
    start = time.process_time()
    linear = _map(pair, _closed_form(pair, pool, classes), rotation_alone)
    row = _row(pair, "joined", pool, linear, time.process_time() - start)
    row["classes"] = 0 if classes is None else len(classes.new)
    return row | ({"stated": _stated(pair, pool, _tried(pair, pool, classes))} if has_trial and pool else {})


def _trial(pair: _Pair, pool: Pool, classes: ClassRows) -> Row:
    """The map that was fitted without the held-out photos, and what is stated of it."""
    start = time.process_time()
    linear = _tried(pair, pool, classes)
    row = _row(pair, "joined, four of five photos", pool, linear, time.process_time() - start)
    return row | {"classes": len(classes.new), "stated": _stated(pair, pool, linear)}


def _held_out(pool: Pool) -> Tensor:
    return torch.arange(len(pool.places)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _tried(pair: _Pair, pool: Pool, classes: ClassRows | None) -> LinearMap:
    return _map(pair, _closed_form(pair, pool, classes, ~_held_out(pool)))


def _stated(pair: _Pair, pool: Pool, linear: LinearMap) -> dict[str, list[float]]:
    """Agreement of every head on held-out photos, as ``JoinReport`` has it."""
    x, y = (features[_held_out(pool)] for features in pair.pooled(pool))
    found = {}
    for kind, head in pair.old.heads.items():
        share = _share(head(linear(x)).argmax(dim=1), head(y).argmax(dim=1))
        optimism = pair.old.optimism.get(kind, 0.0)
        found[kind] = [share, *stated_interval(share, len(x), optimism), len(x), optimism]
    return found


def _strength(pair: _Pair, pool: Pool) -> float:
    """As ``join`` chooses it where there are photos alone, with the pool's head and ImageNet's at hand."""
    form = _closed_form(pair, pool, None, ~_held_out(pool))
    x, y = (features[_held_out(pool)] for features in pair.pooled(pool))
    heads: list[Any] = [pair.old.heads[kind] for kind in dict.fromkeys((IMAGENET, pool.kind))]

    def loss(strength: float) -> float:
        joined = _map(pair, form, strength)(x)
        return sum(divergence(joined, y, head) for head in heads)

    return min(ALONE, key=loss)


def _fitted(pair: _Pair, pool: Pool, fits: Mapping[str, Callable[[Tensor, Tensor], LinearMap]]) -> Iterator[Row]:
    if len(pool.places) < LEAST_PHOTOS:
        return
    for name, fit in fits.items():
        start = time.process_time()
        linear = fit(*pair.pooled(pool))
        yield _row(pair, name, pool, linear, time.process_time() - start) | {"classes": 0}


def _relative(pair: _Pair, pool: Pool) -> Iterator[Row]:
    """Relative representations: a new head on cosines to the pool, with the labels of all training photos."""
    if pool.kind == IMAGENET or len(pool.places) > LARGE:
        return
    start, own = time.process_time(), pair.old.photos[pool.kind]
    x, y = pair.pooled(pool)
    train, test = own.places("train"), pair.test_places(pool.kind)
    predicted = fitted_classes(
        relative_features(own.features[train], y), own.labels[train],
        relative_features(pair.new.photos[pool.kind].features[test], x),
        standardize=False, penalty=RELATIVE_PENALTY / len(train),
    )  # fmt: skip
    accuracy = {pool.kind: _share(torch.from_numpy(predicted), own.labels[test])}
    seconds = time.process_time() - start
    yield _described("relative", pool) | {"accuracy": accuracy, "tested": {pool.kind: len(test)}, "seconds": seconds}


def _described(way: str, pool: Pool | None) -> Row:
    if pool is None:
        return {"way": way, "pool": None, "part": None, "photos": 0}
    return {"way": way, "pool": pool.kind, "part": pool.part, "photos": len(pool.places)}


def _row(pair: _Pair, way: str, pool: Pool | None, linear: LinearMap, seconds: float) -> Row:
    """What a map is worth under every head."""
    found: dict[str, dict[str, Any]] = {"accuracy": {}, "agreement": {}, "tested": {}}
    for kind, head in pair.old.heads.items():
        weight = head.weight.double()
        whole = LinearMap(weight @ linear.weight.double(), weight @ linear.bias.double() + head.bias)
        places, photos = pair.test_places(kind, pool), pair.new.photos[kind]
        said = whole(photos.features[places]).argmax(dim=1)
        found["accuracy"][kind] = _share(said, photos.labels[places])
        found["agreement"][kind] = _share(said, pair.own_answers(kind, places))
        found["tested"][kind] = len(places)
    return {**_described(way, pool), **found, "seconds": seconds}


def _without_maps(pair: _Pair) -> dict[str, Any]:
    """Accuracies by kind of head that no map takes part in, and those of heads on ImageNet logits."""
    new, old = pair.new, pair.old
    places = {kind: pair.test_places(kind) for kind in old.heads}

    def shares(one: Network, heads: Mapping[str, Any], space: Callable[[Tensor], Tensor] = lambda features: features):
        return {
            kind: _share(head(space(one.photos[kind].features[at])).argmax(dim=1), one.photos[kind].labels[at])
            for kind, head in heads.items()
            for at in (places[kind],)
        }

    found: dict[str, Any] = {
        "native": shares(old, old.heads),
        "retrained": shares(new, new.heads),
        "tested": {kind: len(at) for kind, at in places.items()},
        "num_features": [one.weight.shape[1] for one in (new, old)],
    }
    if new.weight.shape == old.weight.shape:
        found["unmapped"] = shares(new, old.heads)
    for name, space in STANDARD.items():
        for word, one in (("native", old), ("joined", new)):
            own = one.heads[IMAGENET]
            found[f"{name}, {word}"] = shares(one, old.standard[name], lambda x, own=own, space=space: space(x, own))
    return found


def _share(said: Tensor, wanted: Tensor) -> float:
    return float((said == wanted).double().mean())

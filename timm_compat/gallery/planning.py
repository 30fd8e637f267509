"""What each way to another model would gain, break and cost, measured on a sample of the stored images."""

import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from timm_compat.errors import ConfigError, DataError
from timm_compat.evaluation.intervals import bootstrap_interval, wilson_interval
from timm_compat.gallery.advice import UpgradePlan, WayScores, recommend
from timm_compat.gallery.embedding import opened
from timm_compat.gallery.nearest import Scale, moments_of
from timm_compat.gallery.sampling import Sample, check_way, draw, measure_pairs
from timm_compat.gallery.searching import Gallery
from timm_compat.gallery.stored import Stored
from timm_compat.gallery.ways import (
    BLEND,
    JOIN,
    KEEP,
    MAP,
    RANKS,
    REEMBED,
    WAYS,
    Pairs,
    class_recall,
    compared,
    cosines,
    fit_linear,
    neighbour_recall,
)
from timm_compat.models.cost import measure_cost
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.run_options import RunKeywords, RunOptions

SAMPLE = 1000
LABELS = ("folder",)
Labels = str | Mapping[str, str] | None


def plan(
    gallery: Gallery | str | Path,
    to: CompatExtractor | str | Path,
    *,
    sample: int = SAMPLE,
    labels: Labels = None,
    seed: int = 0,
    **run: Unpack[RunKeywords],
) -> UpgradePlan:
    """Measure every way from a gallery's model to another one, and recommend one.

    The maps are fitted on half of the sample, all ways are measured on the other half: each of its images is a query
    for the others. With labels, an image of the query's class is right; without, what re-embedding would find is right,
    which tells how much of it a way keeps, but not whether the new model is better.

    Args:
        gallery: as stored.
        to: the new extractor, of level "pooled".
        sample: number of stored images to use, at least 40; each is embedded by the new model once.
        labels: "folder" (the name of the folder that an image lies in), a mapping from id to class, or None.
        seed: of the sample.
        **run: ``device``, ``batch_size``, ``amp``, ``workers``, ``progress`` (see ``RunOptions``).

    Raises:
        ConfigError: a gallery of several spaces (its upgrade is unfinished), or the extractor that it has already.
        DataError: fewer than 40 images of the gallery are on disk: no way can be measured, and no map fitted.

    Example:
        >>> plan = tc.gallery.plan("photos.gallery", "new-extractor", sample=60)
        >>> plan.recommendation  # without labels nothing shows that the new model is better
        'keep'
    """
    options, new = RunOptions(**run), opened(to)
    stored = gallery._stored if isinstance(gallery, Gallery) else Stored.open(gallery)
    check_way(stored, new, MAP)
    drawn = draw(stored, sample, seed)
    classes = None if labels is None else _classes(drawn.ids, labels)
    given = gallery._usable() if isinstance(gallery, Gallery) else []
    pairs, seconds, current = measure_pairs(stored, new, drawn, options, given)
    half = len(drawn.ids) // 2
    fitting, scoring = pairs.at(torch.arange(half)), pairs.at(torch.arange(half, len(drawn.ids)))
    start = time.perf_counter()
    join, mapping = fit_linear(fitting.pooled, fitting.stored), fit_linear(fitting.stored, fitting.new)
    fit_seconds = (time.perf_counter() - start) / 2
    scores = compared(scoring, join, mapping)
    own = None if classes is None else classes[half:]
    right = {way: _recall(found, own, scores[REEMBED]) for way, found in scores.items()}
    half_way = _recall(_half_way(fitting, scoring), own, scores[REEMBED])
    costs = _costs(stored, new, current, drawn, seconds, fit_seconds)
    ways = tuple(_scored(way, right, costs[way], labels is not None) for way in WAYS)
    recommendation, reason = recommend({found.way: found for found in ways}, labelled=labels is not None)
    space = next(iter(stored.manifest.spaces_present))
    return UpgradePlan(
        stored.manifest.spaces[space].architecture,
        new.architecture,
        stored.manifest.num_images,
        half,
        len(drawn.ids) - half,
        "an image of the query's class" if labels is not None else "what re-embedding would find",
        ways,
        recommendation,
        reason,
        float(half_way[RANKS[0]].mean()),
        _remarks(drawn, labels is not None),
    )


def _classes(ids: tuple[str, ...], labels: str | Mapping[str, str]) -> Tensor:
    if isinstance(labels, str):
        if labels not in LABELS:
            raise ConfigError(
                f"labels: expected {' or '.join(LABELS)}, a mapping from id to class, or None, got {labels!r}"
            )
        names = [PurePosixPath(own).parent.name for own in ids]
    else:
        unknown = [own for own in ids if own not in labels]
        if unknown:
            raise DataError(f"labels: expected a class for every id, got none for {unknown[0]!r}")
        names = [labels[own] for own in ids]
    known = {name: number for number, name in enumerate(sorted(set(names)))}
    if len(known) < 2:
        raise DataError(f"labels: expected at least two classes, got {next(iter(known))!r} only; leave labels out")
    return torch.tensor([known[name] for name in names])


def _recall(found: Tensor, classes: Tensor | None, wanted: Tensor) -> dict[int, NDArray[np.float64]]:
    """By k, each query's recall: of its class, or of the neighbours by ``wanted`` scores."""
    if classes is None:
        return {count: neighbour_recall(found, wanted, count) for count in RANKS}
    if not (torch.bincount(classes)[classes] > 1).any():
        raise DataError(
            "labels: expected classes of several images in the sample, got one image each; leave labels out"
        )
    return {count: class_recall(found, classes, count) for count in RANKS}


def _half_way(background: Pairs, pairs: Pairs) -> Tensor:
    """Scores (n, n) where every second image is a new row and the others are as they were."""
    kept, new = cosines(pairs.queries, pairs.stored), cosines(pairs.new, pairs.new)
    own, current = cosines(pairs.queries, background.stored), cosines(pairs.new, background.new)
    scale = Scale(*moments_of(own), *moments_of(current))
    is_new = torch.arange(len(kept)) % 2 == 0
    return torch.where(is_new, new, scale(kept))


def _scored(
    way: str,
    right: Mapping[str, Mapping[int, NDArray[np.float64]]],
    cost: tuple[float, float, float | None],
    shares: bool,
) -> WayScores:
    first, tenth, kept = right[way][RANKS[0]], right[way][RANKS[1]], right[KEEP][RANKS[0]]
    at_10 = wilson_interval(float(tenth.mean()), len(tenth)) if shares else bootstrap_interval(tenth)
    return WayScores(
        way,
        float(first.mean()),
        wilson_interval(float(first.mean()), len(first)),
        float(tenth.mean()),
        at_10,
        float((first - kept).mean()),
        bootstrap_interval(first - kept),
        float(((kept == 1) & (first < 1)).mean()),
        *cost,
    )


def _costs(
    stored: Stored,
    new: CompatExtractor,
    current: CompatExtractor | None,
    drawn: Sample,
    seconds: float,
    fit_seconds: float,
) -> dict[str, tuple[float, float, float | None]]:
    """By way seconds and GFLOP of the whole gallery, and GFLOP of a query."""
    images, count = stored.manifest.num_images, len(drawn.ids)
    own = measure_cost(new, new.data_config["input_size"]).gflop
    old = None if current is None else measure_cost(current, current.data_config["input_size"]).gflop
    start = time.perf_counter()
    weight = torch.zeros(new.space.feature_dim, drawn.rows.shape[1], dtype=torch.float64)
    _ = drawn.rows.double() @ weight.T
    product = (time.perf_counter() - start) / count * images
    mapped = 2 * weight.numel() * images / 1e9
    return {
        KEEP: (0.0, 0.0, old),
        JOIN: (seconds + fit_seconds, own * count, own),
        MAP: (seconds + fit_seconds + product, own * count + mapped, own),
        BLEND: (seconds + fit_seconds + product, own * count + mapped, None if old is None else old + own),
        REEMBED: (seconds / count * images, own * images, own),
    }


def _remarks(drawn: Sample, labelled: bool) -> tuple[str, ...]:
    found = []
    if drawn.missing:
        seen = drawn.missing + len(drawn.ids)
        found.append(
            f"{drawn.missing:,} of {seen:,} images looked at are gone or changed: they cannot be re-embedded, what is "
            "said here is about the others"
        )
    if not labelled:
        found.append(
            "Without labels re-embedding is 1 by definition, and whether the new model is better is not measured."
        )
    return tuple(found)

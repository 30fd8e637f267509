"""What each way to another model would give, break and cost, measured on a sample of the stored images."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from timm_compat.errors import ConfigError, DataError
from timm_compat.evaluation.intervals import bootstrap_interval, wilson_interval
from timm_compat.gallery.embedding import opened
from timm_compat.gallery.sampling import Sample, check_way, draw, measure_pairs
from timm_compat.gallery.searching import Gallery, Scale, moments_of
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
from timm_compat.table import markdown_table

SAMPLE = 1000
LABELS = ("folder",)
CLOSE = 0.01  # of recall@1: what may be lost against re-embedding without a word
WORTH = 2  # times as much must re-embedding cost, for another way to be recommended
WORDS = {
    KEEP: "keep the old model",
    JOIN: "search old embeddings with joined new queries",
    MAP: "map old embeddings into the new space",
    BLEND: "both models' queries, old and mapped embeddings",
    REEMBED: "re-embed every image",
}
Labels = str | Mapping[str, str] | None


@dataclass(frozen=True)
class WayScores:
    """One way.

    Attributes:
        way: "keep", "join", "map", "blend" or "reembed".
        recall_at_1: in [0, 1].
        interval_at_1: that holds it with 95 % confidence.
        recall_at_10: in [0, 1].
        interval_at_10: likewise.
        gain: recall@1 over that of keeping the model.
        gain_interval: likewise, over the same queries.
        negative_flips: share of queries that the old model answers right and this way wrong, at 1.
        seconds: for the whole gallery, as long as the sample took on this machine, that for the sample included where
            the way needs one.
        gflop: for the whole gallery, 1e9 operations.
        query_gflop: for one query; None where the old extractor is not at hand.
    """

    way: str
    recall_at_1: float
    interval_at_1: tuple[float, float]
    recall_at_10: float
    interval_at_10: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]
    negative_flips: float
    seconds: float
    gflop: float
    query_gflop: float | None


@dataclass(frozen=True)
class UpgradePlan:
    """All ways from a gallery's model to another one.

    Attributes:
        old: architecture that embeds for the gallery now.
        new: architecture of the extractor to go over to.
        num_images: of the gallery.
        num_fitted: sampled images that fitted the maps.
        num_scored: other sampled images, which were looked for among each other.
        measured_by: what counts as right.
        ways: the scores.
        recommendation: one of the ways; "keep" is "do not".
        reason: why.
        half_way: recall@1 in [0, 1] while re-embedding is half done: every second image as a new row, searched with
            both models' queries, scores made comparable as ``Gallery.search`` does.
        remarks: what could not be measured, or is to be known.
    """

    old: str
    new: str
    num_images: int
    num_fitted: int
    num_scored: int
    measured_by: str
    ways: tuple[WayScores, ...]
    recommendation: str
    reason: str
    half_way: float
    remarks: tuple[str, ...]

    def way(self, name: str) -> WayScores:
        """One way's scores.

        Raises:
            ConfigError: there is none of that name.
        """
        for found in self.ways:
            if found.way == name:
                return found
        raise ConfigError(f"way: expected one of {', '.join(WAYS)}, got {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)

    def table(self) -> str:
        """The ways as a Markdown table."""
        heading = ["way", "recall@1", "recall@10", "flips", "seconds", "GFLOP", "GFLOP a query"]
        return markdown_table([heading, *(_line(found) for found in self.ways)])

    def __str__(self) -> str:
        head = (
            f"{self.old} -> {self.new}: {self.num_images:,} images; {self.num_fitted:,} sampled ones fitted the maps, "
            f"{self.num_scored:,} others are looked for among each other; right is {self.measured_by}"
        )
        words = [f"{name}: {WORDS[name]}" for name in WAYS]
        half = f"Half-way through re-embedding recall@1 is {self.half_way:.3f}."
        advice = f"Recommended: {self.recommendation}. {self.reason}"
        return "\n".join([head, "", self.table(), "", *words, "", *self.remarks, half, advice])


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

    Half of the sample fits the maps, the other half scores all ways: each of its images is looked for among the others.
    With labels, an image of the query's class counts as right; without, what re-embedding would find counts, which says
    how much a way keeps of it, and not whether the new model is better.

    Args:
        gallery: as stored.
        to: the new extractor, of level "pooled".
        sample: how many stored images to look at, at least 40; they pass the new network once.
        labels: "folder" (the name of the folder that an image lies in), a mapping from id to class, or None.
        seed: draws the sample.
        **run: ``device``, ``batch_size``, ``amp``, ``workers``, ``progress`` (see ``RunOptions``).

    Raises:
        ConfigError: a gallery of several spaces (its upgrade is not over), or the extractor that it has already.
        DataError: fewer than 40 images of the gallery are on disk: no way can be measured, no map be fitted.
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


def recommend(ways: Mapping[str, WayScores], *, labelled: bool) -> tuple[str, str]:
    """The way to go, and why.

    Re-embedding has to beat the old model by more than its interval leaves open, else nothing is worth a change. Then
    the cheapest way counts that beats the old model as surely and loses no more than 0.01 of recall@1 against
    re-embedding, if that costs at least twice as much.
    """
    full = ways[REEMBED]
    if not labelled:
        best = max((ways[JOIN], ways[MAP], ways[BLEND]), key=lambda found: found.recall_at_10)
        return KEEP, (
            "Do not, until labels (--labels folder) show that the new model is better: without them it can only be "
            f"told how much of its answers a way keeps; most by {best.way}, {best.recall_at_10:.3f} of the first ten"
        )
    if full.gain_interval[0] <= 0:
        return KEEP, (
            f"Do not: even re-embedding changes recall@1 by {full.gain:+.3f} ({_range(full.gain_interval)}), so the "
            "new model is no better here within the interval"
        )
    better = [ways[way] for way in (JOIN, MAP, BLEND) if ways[way].gain_interval[0] > 0]
    close = [found for found in better if found.recall_at_1 >= full.recall_at_1 - CLOSE]
    gained = f"It gains {full.gain:+.3f} of recall@1 ({_range(full.gain_interval)})"
    if close:
        best = min(close, key=lambda found: (found.gflop, found.query_gflop or 0))
        if full.gflop < WORTH * best.gflop:
            return REEMBED, (
                f"{gained}, and costs {full.gflop:,.0f} GFLOP where {best.way} costs {best.gflop:,.0f}: the gallery is "
                "hardly larger than the sample"
            )
        return best.way, (
            f"It gains {best.gain:+.3f} of recall@1 ({_range(best.gain_interval)}) and is within {CLOSE} of "
            "re-embedding, without touching the other images"
        )
    meanwhile = ""
    if better:
        best = max(better, key=lambda found: found.recall_at_1)
        meanwhile = f"; {best.way} gains {best.gain:+.3f} of it at once, should the images have to wait"
    return REEMBED, (
        f"It gains {full.gain:+.3f} of recall@1 ({_range(full.gain_interval)}), and no cheaper way comes within "
        f"{CLOSE} of it{meanwhile}"
    )


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


def _line(found: WayScores) -> list[str]:
    query = "n/a" if found.query_gflop is None else f"{found.query_gflop:.2f}"
    return [
        found.way,
        f"{found.recall_at_1:.3f} ({_range(found.interval_at_1)})",
        f"{found.recall_at_10:.3f} ({_range(found.interval_at_10)})",
        "" if found.way == KEEP else f"{found.negative_flips:.3f}",
        f"{found.seconds:,.1f}",
        f"{found.gflop:,.0f}",
        query,
    ]


def _range(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:.3f} to {high:.3f}"

"""An upgrade plan: scores and costs of every way as a table, and which one to take."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from timm_compat.errors import ConfigError
from timm_compat.gallery.ways import BLEND, JOIN, KEEP, MAP, REEMBED, WAYS
from timm_compat.table import markdown_table

CLOSE = 0.01  # of recall@1: what a recommended way may lose compared with re-embedding
WORTH = 2  # re-embedding must cost this many times as much for another way to be recommended
WORDS = {
    KEEP: "keep the old model",
    JOIN: "search old embeddings with joined new queries",
    MAP: "map old embeddings into the new space",
    BLEND: "both models' queries, old and mapped embeddings",
    REEMBED: "re-embed every image",
}


@dataclass(frozen=True)
class WayScores:
    """One way.

    Attributes:
        way: "keep", "join", "map", "blend" or "reembed".
        recall_at_1: in [0, 1].
        interval_at_1: its 95 % interval.
        recall_at_10: in [0, 1].
        interval_at_10: likewise.
        gain: of recall@1, compared with keeping the model.
        gain_interval: likewise, over the same queries.
        negative_flips: share of queries that the old model answers right and this way wrong, at 1.
        seconds: for the whole gallery, estimated from the sample on this machine; including those for the sample if
            the way needs one.
        gflop: for the whole gallery, 1e9 operations.
        query_gflop: for one query; None if the old extractor is not available.
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
        new: architecture of the extractor to move to.
        num_images: of the gallery.
        num_fitted: sampled images that fitted the maps.
        num_scored: the other sampled images, which were queries for one another.
        measured_by: what counts as right.
        ways: the scores.
        recommendation: one of the ways; "keep" means not to move.
        reason: for the recommendation.
        half_way: recall@1 in [0, 1] while re-embedding is half done: every second image as a new row, searched with
            both models' queries, scores made comparable as ``Gallery.search`` does.
        remarks: what could not be measured, and other notes.
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
        heading = ["way", "recall@1", "recall@10", "flips", "seconds", "GFLOP", "GFLOP per query"]
        return markdown_table([heading, *(_line(found) for found in self.ways)])

    def __str__(self) -> str:
        head = (
            f"{self.old} -> {self.new}: {self.num_images:,} images; {self.num_fitted:,} sampled ones fitted the maps, "
            f"{self.num_scored:,} others were queries for one another; right is {self.measured_by}"
        )
        words = [f"{name}: {WORDS[name]}" for name in WAYS]
        half = f"Half-way through re-embedding recall@1 is {self.half_way:.3f}."
        advice = f"Recommended: {self.recommendation}. {self.reason}"
        return "\n".join([head, "", self.table(), "", *words, "", *self.remarks, half, advice])


def recommend(ways: Mapping[str, WayScores], *, labelled: bool) -> tuple[str, str]:
    """The recommended way, and why.

    Re-embedding has to beat the old model by more than its interval leaves open, else nothing is worth a change. Then
    the cheapest way counts that beats the old model as surely and loses no more than 0.01 of recall@1 against
    re-embedding, if that costs at least twice as much.
    """
    full = ways[REEMBED]
    if not labelled:
        best = max((ways[JOIN], ways[MAP], ways[BLEND]), key=lambda found: found.recall_at_10)
        return KEEP, (
            "Do not, until labels (--labels folder) show that the new model is better: without them it is only "
            f"known how many of its answers a way keeps; most by {best.way}, {best.recall_at_10:.3f} of the first ten"
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
            "re-embedding, without embedding the other images"
        )
    meanwhile = ""
    if better:
        best = max(better, key=lambda found: found.recall_at_1)
        meanwhile = f"; {best.way} gains {best.gain:+.3f} of it without waiting for the images"
    return REEMBED, (
        f"It gains {full.gain:+.3f} of recall@1 ({_range(full.gain_interval)}), and no cheaper way comes within "
        f"{CLOSE} of it{meanwhile}"
    )


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

"""From the cells of the table of pretrained networks to numbers: groups of heads, ways, shares of native, coverage."""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.photographs import IMAGENET
from timm_compat.evaluation.intervals import wilson_interval
from timm_compat.joining.report import stated_interval

Cells = Mapping[str, Sequence[Mapping[str, Any]]]
Row = Mapping[str, Any]
Wanted = Callable[["One", str], bool]

ALL_CLASSES = 1000
FEW = 100  # photos: pools of fewer are not counted where a table does not say how many
DOMAINS = "domains"
ONE_FAMILY, TWO_FAMILIES = "Networks of one family", "Networks of two families"
NONE, OWN, OTHER = "none", "the head's own kind", "another kind"


def ratio(value: float, own: float) -> float:
    """Share of what a head does on its own network; NaN where that is nothing."""
    return value / own if own else float("nan")


@dataclass(frozen=True)
class One:
    """One row of one cell.

    Attributes:
        new: network whose features are used.
        old: network of the heads.
        seed: of the draw of photos.
        row: see ``pretrained.measure``.
        native: accuracy by kind of head on its own network.
        retrained: of heads of the new network.
    """

    new: str
    old: str
    seed: int
    row: Row
    native: Mapping[str, float]
    retrained: Mapping[str, float]

    def share(self, kind: str) -> float:
        """Of native."""
        return ratio(float(self.row["accuracy"][kind]), self.native[kind])


def first_cells(cells: Cells) -> dict[tuple[str, str], Mapping[str, Any]]:
    """By new and old network, the result of the first draw."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for name, draws in cells.items():
        new, _, old = name.partition(" under ")
        if first := [cell["result"] for cell in draws if cell["seed"] == 0]:
            found[new, old] = first[0]
    return found


def every(cells: Cells) -> Iterator[One]:
    """All rows of all pairs whose first draw is there."""
    first = first_cells(cells)
    for name, draws in cells.items():
        new, _, old = name.partition(" under ")
        if (new, old) not in first:
            continue
        native, retrained = (first[new, old][key] for key in ("native", "retrained"))
        for cell in draws:
            for row in cell["result"]["rows"]:
                yield One(new, old, cell["seed"], row, native, retrained)


def networks(cells: Cells) -> list[str]:
    """All of them, in alphabetical order."""
    return sorted({name for pair in first_cells(cells) for name in pair})


def family(network: str) -> str:
    """The first word of timm's name: "efficientnet" of tf_efficientnet_lite0, "resnet" of resnet10t."""
    return re.split(r"[_\d]", network.removeprefix("tf_"))[0]


def by_family(cells: Cells) -> dict[str, Cells]:
    """Pairs of networks of one family, and of two, as far as there are such."""
    found: dict[str, dict[str, Sequence[Mapping[str, Any]]]] = {}
    for name, draws in cells.items():
        new, _, old = name.partition(" under ")
        found.setdefault(ONE_FAMILY if family(new) == family(old) else TWO_FAMILIES, {})[name] = draws
    return {words: found[words] for words in (ONE_FAMILY, TWO_FAMILIES) if words in found}


def groups(cells: Cells) -> dict[str, list[str]]:
    """Kinds of heads by what a table calls them: ImageNet's, the first other one, and the rest together."""
    kinds = list(next(iter(first_cells(cells).values()))["native"])
    others = [kind for kind in kinds if kind != IMAGENET]
    named = {"ImageNet": [IMAGENET]} if IMAGENET in kinds else {}
    domains = others[1:]
    return named | {others[0]: others[:1]} | ({DOMAINS: domains} if domains else {})


def main_kind(cells: Cells) -> str:
    """The first kind beside ImageNet, of which several numbers of photos are tried."""
    return next(kind for kind in next(iter(first_cells(cells).values()))["native"] if kind != IMAGENET)


def relation(row: Row, kind: str) -> str:
    """Of a row's photos to a kind of head."""
    if row["pool"] is None:
        return NONE
    return OWN if row["pool"] == kind else OTHER


def means(ones: Iterable[One], kinds: Sequence[str], wanted: Wanted) -> list[tuple[float, float]]:
    """Accuracy and share of native, of every row and head that is wanted."""
    return [
        (float(one.row["accuracy"][kind]), one.share(kind))
        for one in ones
        for kind in kinds
        if kind in one.row["accuracy"] and wanted(one, kind)
    ]


def ceilings(ones: Iterable[One], kinds: Sequence[str], wanted: Wanted) -> list[float]:
    """Share of what heads reach that were retrained on the new network, of every row and head that is wanted."""
    return [
        ratio(float(one.row["accuracy"][kind]), one.retrained[kind])
        for one in ones
        for kind in kinds
        if kind in one.row["accuracy"] and wanted(one, kind)
    ]


def rows_of(way: str, source: str | None, test: Callable[[One], bool] = lambda one: True) -> Wanted:
    """Rows of a way with photos of a source; of all classes in common, where classes count at all."""

    def wanted(one: One, kind: str) -> bool:
        if one.row["way"] != way or (way == "joined" and one.row["classes"] != ALL_CLASSES):
            return False
        return source in (None, relation(one.row, kind)) and test(one)

    return wanted


def photos(count: int) -> Callable[[One], bool]:
    """So many."""
    return lambda one: bool(one.row["photos"] == count)


def enough(one: One) -> bool:
    """A pool that is more than a handful."""
    return bool(one.row["photos"] >= FEW)


def largest(ones: Sequence[One]) -> Callable[[One], bool]:
    """Whether a row's pool is the largest of its kind."""
    most: dict[str | None, int] = {}
    for one in ones:
        if one.row["part"] == "train":
            most[one.row["pool"]] = max(most.get(one.row["pool"], 0), one.row["photos"])
    return lambda one: bool(one.row["part"] == "train" and one.row["photos"] == most[one.row["pool"]])


def joined_by(ones: Sequence[One], source: str) -> Wanted:
    """Joined by classes, with all photos of a source where there is one."""
    return rows_of("joined", source, largest(ones) if source != NONE else lambda one: True)


def by_draw(ones: Sequence[One], kinds: Sequence[str], wanted: Wanted) -> list[float]:
    """Share of native, one mean a draw, over the pairs that have all draws: what the draw of photos alone changes."""
    seeds = sorted({one.seed for one in ones})
    pairs = [{(one.new, one.old) for one in ones if one.seed == seed} for seed in seeds]
    common = set.intersection(*pairs) if pairs else set()
    found = []
    for seed in seeds:
        chosen = [one for one in ones if one.seed == seed and (one.new, one.old) in common]
        if shares := [share for _, share in means(chosen, kinds, wanted) if not math.isnan(share)]:
            found.append(statistics.fmean(shares))
    return found


def pair_share(ones: Iterable[One], new: str, old: str, kinds: Sequence[str], wanted: Wanted) -> float | None:
    """Mean share of native of one pair; None where nothing was measured."""
    found = means((one for one in ones if (one.new, one.old) == (new, old)), kinds, wanted)
    return statistics.fmean(share for _, share in found) if found else None


@dataclass(frozen=True)
class Statement:
    """What a join states of a head before any label is seen, and what is true on test photos.

    Attributes:
        pair: "NEW under OLD".
        kind: of the head.
        source: of the photos.
        stated: agreement on held-out photos.
        low: lower end of its interval.
        high: upper end.
        count: held-out photos.
        optimism: of the head.
        truth: agreement on test photos.
        kept: accuracy on test photos as a share of the head's on its own network.
    """

    pair: str
    kind: str
    source: str
    stated: float
    low: float
    high: float
    count: int
    optimism: float
    truth: float
    kept: float

    @property
    def is_covered(self) -> bool:
        """Whether the interval holds the truth."""
        return self.low <= self.truth <= self.high

    def is_covered_by(self, flattery: float) -> bool:
        """Whether Wilson's interval does, its lower end lowered by this."""
        low, high = wilson_interval(self.stated, self.count)
        return low - max(flattery, self.optimism * self.stated) <= self.truth <= high


def statements(ones: Iterable[One]) -> list[Statement]:
    """Of all rows that state something."""
    found = []
    for one in ones:
        for kind, (share, _, _, count, *known) in one.row.get("stated", {}).items():
            optimism = known[0] if known else 0.0  # cells of older runs do not tell it
            low, high = stated_interval(share, int(count), optimism)  # as it is now, whatever a kept cell was made with
            source = relation(one.row, kind)
            if source == OWN:
                is_seen = (
                    one.row["part"] == "train" and kind != IMAGENET
                )  # ImageNet's test photos were learned from too
                source += ", photos that the head learned from" if is_seen else ", photos like the test photos"
            truth = float(one.row["agreement"][kind])
            pair = f"{one.new} under {one.old}"
            found.append(Statement(pair, kind, source, share, low, high, int(count), optimism, truth, one.share(kind)))
    return found


def least_flattery(stated: Sequence[Statement], wanted: float) -> float:
    """By how many hundredths to lower Wilson's intervals, that this share of them holds the truth, in every source."""

    def covered(flattery: float) -> bool:
        sources = {one.source for one in stated}
        shares = ([one.is_covered_by(flattery) for one in stated if one.source == source] for source in sources)
        return all(statistics.mean(held) >= wanted for held in shares)

    return next((number / 100 for number in range(100) if covered(number / 100)), 1.0)

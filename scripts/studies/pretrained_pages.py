"""The table of pretrained networks as a page of its own, with pictures."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from studies import pretrained_numbers as numbers
from studies.networks import SIDE, STUDENTS, TEACHER
from studies.photographs import IMAGENET
from studies.pretrained_numbers import (
    ALL_CLASSES,
    NONE,
    OTHER,
    OWN,
    Cells,
    One,
    Statement,
    Wanted,
    enough,
    largest,
    photos,
    ratio,
    rows_of,
)
from studies.pretrained_pictures import draw
from timm_compat.evaluation.intervals import wilson_interval
from timm_compat.joining.report import FLATTERY
from timm_compat.storage.files import replace_text
from timm_compat.table import markdown_table

INTRODUCTION = """# Joins between pretrained classifiers

Heads that were trained on one network (*native*), run on another, with no label. *Joined* is the closed form of
`tc.join`: through the 1,000 ImageNet classes that both classifiers name, through unlabelled photos that both see, or
through both. *Share* is accuracy divided by the native one; of several pairs or heads, their mean. Heads: each
network's own ImageNet classifier, and logistic regressions on its features, one over the objects of Caltech-101, one
over seven things in each domain of PACS. Test photos trained no head."""
IMAGENET_NOTE = """ImageNet's head is tested on one photo of each class, without those that a join saw. They are
**training photos of every network here**: its accuracies are too high, and only their ratios mean something."""
MADE_NOTE = f"""Networks marked * had no public weights at hand. They were trained, on images of {SIDE} pixels, to give
{TEACHER}'s logits on 25,000 images of CIFAR-10 and crops of 3,905 photos, without a label: the ImageNet
sample and the training photos of the other sets, never a test photo (`scripts/studies/networks.py`). So they are no
independent networks: what they know they have from {TEACHER}, and it is less."""
WAYS_NOTE = """Mean accuracy over all pairs and, in brackets, share of the head's accuracy on its own network ± standard
deviation over the draws of the photos where there are several. All: 300 of ImageNet, whose others test its head.
Another kind: mean over all pools of 100 photos and more that are not the head's. Photos alone: the rotation's strength
is chosen once a pair, on the first pool of 300; join chooses anew."""
CEILING_NOTE = """The same as a share of the accuracy of heads that were retrained on the new network with all labels;
with all photos of the head's own kind. The stronger of two networks is the one with the better top-1 on ImageNet."""
STANDARD_NOTE = """Each network's 1,000 ImageNet logits, centred over the classes, as coordinates that need neither a
reference nor a fit. Heads are trained on one network's logits and run on another's: accuracy, and share of what a head
on features keeps on its own network."""
STATED_NOTE = f"""`join` states how often a head says the same from the joined as from the reference's features, on
held-out photos, with an interval for new photos of that kind: Wilson's 95 %, its lower end lowered by {FLATTERY} and,
for a probe, at least by the stated share times what the head does better on photos that it learned from than in
cross-validation: such photos flatter it. Here it is held against the same on test photos, for every pair, pool, draw
and head."""
FIXED = {
    "head on its own network": "native",
    "head retrained with all labels": "retrained",
    "no map": "unmapped",
}
WAYS = {
    "joined by classes and photos": "joined",
    "joined by photos alone": "photos alone",
    "Procrustes": "Procrustes",
    "ridge": "ridge",
}
JOINS = {"joined by classes alone": NONE, "joined by classes and photos of the head's own kind": OWN}
SHOWN_LOSSES = 10
WANTED_COVERAGE = 0.9


def write_pretrained(cells: Cells, folder: Path, command: str) -> None:
    """Write ``pretrained.md``, ``pretrained.json`` and pictures.

    Args:
        cells: by "NEW under OLD", its draws.
        folder: where to.
        command: that measured it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ones = list(numbers.every(cells))
    if not ones:
        return
    families = numbers.by_family(cells)
    parts = [INTRODUCTION, _made(cells, command), "## The networks", _networks(cells), IMAGENET_NOTE]
    if any(name in STUDENTS for name in numbers.networks(cells)):
        parts.append(MADE_NOTE)
    parts += ["## Ways to another network's heads", *_by_family(families, _ways), WAYS_NOTE]
    parts += ["## Every network under every head", _pairs(cells, ones)]
    parts += ["## What decides", *_deciding(cells, families)]
    parts += ["## Where it does not help", *_failing(cells, ones)]
    parts += ["## A standard space: centred ImageNet logits", *_by_family(families, _standard), STANDARD_NOTE]
    parts += ["## What a join states before any label is seen", STATED_NOTE, *_by_family(families, _coverage)]
    replace_text(folder / "pretrained.md", "\n\n".join(part for part in parts if part) + "\n")
    replace_text(folder / "pretrained.json", json.dumps(_document(cells, command), separators=(",", ":")) + "\n")
    draw(cells, ones, folder)


def _made(cells: Cells, command: str) -> str:
    every = [cell for draws in cells.values() for cell in draws]
    origin, seeds = every[0]["made"], sorted({cell["seed"] for cell in every})
    commits = ", ".join(sorted({cell["made"]["commit"] for cell in every}))
    versions = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    machine, seconds = origin["machine"], sum(cell["processor_seconds"] for cell in every)
    memory = max(cell["result"]["peak_memory_mb"] for cell in every)
    counts = every[0]["settings"]["photos"]
    photos = "; ".join(f"{kind} {found['train']} to train, {found['test']} to test" for kind, found in counts.items())
    return (
        f"`{command}`: {len(cells)} pairs, draws of the photos {', '.join(map(str, seeds))} (pools of all "
        f"photos, of 1,000 and of a domain are not drawn again), {seconds / 60:.0f} minutes of processor time on "
        f"cached features, at most {memory:,.0f} MB; {machine['gpu'] or machine['cpu']}, {machine['cores']} cores, "
        f"{origin['threads']} thread(s); commits {commits}; {versions}; {max(cell['made']['date'] for cell in every)}. "
        f"Photos: {photos}."
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")


def _percent(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.0%}"


def _name(network: str) -> str:
    return f"{network} \\*" if network in STUDENTS else network


def _networks(cells: Cells) -> str:
    body, first = [], numbers.first_cells(cells)
    kinds = list(next(iter(first.values()))["native"])
    for name in numbers.networks(cells):
        old = [found for (_, owner), found in first.items() if owner == name]
        new = [found for (other, _), found in first.items() if other == name]
        accuracy = old[0]["native"] if old else new[0]["retrained"]
        tested = (old or new)[0]["tested"]
        size = old[0]["num_features"][1] if old else new[0]["num_features"][0]
        body.append([_name(name), str(size), *(_with_interval(accuracy[kind], tested[kind]) for kind in kinds)])
    return markdown_table([["network", "features", *kinds], *body])


def _with_interval(share: float, count: int) -> str:
    low, high = wilson_interval(share, count)
    return f"{share:.3f} ({low:.3f} to {high:.3f})"


def _by_family(families: Mapping[str, Cells], table: Callable[[Cells, Sequence[One]], str]) -> Iterator[str]:
    """A table for pairs of one family and one for pairs of two, under their names where there are both."""
    for words, part in families.items():
        if len(families) > 1:
            yield f"**{words}** ({len(part)} pairs)"
        yield table(part, list(numbers.every(part)))


def _chosen_ways(ones: Sequence[One]) -> list[tuple[str, str, Wanted]]:
    """Way, photos and rows of each line of the main table."""
    found = [("joined by classes alone", NONE, rows_of("joined", NONE))]
    for count in (30, 300, 1000):
        found.append(("joined by classes and photos", f"{count:,} of {OWN}", rows_of("joined", OWN, photos(count))))
    for words, way in WAYS.items():
        found.append((words, f"all of {OWN}", rows_of(way, OWN, largest(ones))))
        found.append((words, OTHER, rows_of(way, OTHER, enough)))
    return [*found, ("relative representations, new head with labels", OWN, rows_of("relative", OWN, enough))]


def _ways(cells: Cells, ones: Sequence[One]) -> str:
    """Means over all pairs: accuracy and share of native, for each group of heads."""
    groups = numbers.groups(cells)
    known = {key for result in numbers.first_cells(cells).values() for key in result}
    body = [_fixed(cells, words, key) for words, key in FIXED.items() if key in known]
    for way, pools, wanted in _chosen_ways(ones):
        columns = [_accuracy_and_share(ones, kinds, wanted) for kinds in groups.values()]
        if any(columns):
            body.append([way, pools, *columns])
    return markdown_table([["way", "unlabelled photos", *groups], *body], words=(0, 1))


def _accuracy_and_share(ones: Sequence[One], kinds: Sequence[str], wanted: Wanted) -> str:
    measured = numbers.means(ones, kinds, wanted)
    if not measured:
        return ""
    accuracy, share = (_mean(column) for column in zip(*measured, strict=True))
    draws = numbers.by_draw(ones, kinds, wanted)
    spread = f" ± {100 * statistics.stdev(draws):.1f}" if len(draws) > 1 else ""
    return f"{accuracy:.3f} ({100 * share:.0f}{spread} %)"


def _fixed(cells: Cells, words: str, key: str) -> list[str]:
    results, columns = list(numbers.first_cells(cells).values()), []
    for kinds in numbers.groups(cells).values():
        found = [(one[key][kind], one["native"][kind]) for one in results if key in one for kind in kinds]
        accuracy, share = _mean([value for value, _ in found]), _mean([ratio(value, own) for value, own in found])
        columns.append(f"{accuracy:.3f}" if key == "native" else f"{accuracy:.3f} ({100 * share:.0f} %)")
    return [words, "", *columns]


def _pairs(cells: Cells, ones: Sequence[One]) -> str:
    """Accuracy of every pair under every head, with Wilson's intervals."""
    first, body = numbers.first_cells(cells), []
    kinds = list(next(iter(first.values()))["native"])
    for (new, old), result in first.items():
        mine = [one for one in ones if (one.new, one.old) == (new, old) and one.seed == 0]
        for words, source in JOINS.items():
            wanted = numbers.joined_by(ones, source)
            pair = f"{_name(new)} under {_name(old)}'s heads" if source == NONE else ""
            body.append([pair, words, *(_of_one(mine, kind, wanted) for kind in kinds)])
        for words, key in FIXED.items():
            if key in result:
                body.append(["", words, *(f"{result[key][kind]:.3f}" for kind in kinds)])
    text = (
        "Where only classes count, one join serves every column; with photos, each column has the join that saw its "
        "own kind. 95 % intervals over the test photos, first draw."
    )
    return text + "\n\n" + markdown_table([["pair", "way", *kinds], *body], words=(0, 1))


def _of_one(mine: Sequence[One], kind: str, wanted: Wanted) -> str:
    rows = [one.row for one in mine if wanted(one, kind)]
    return _with_interval(rows[0]["accuracy"][kind], rows[0]["tested"][kind]) if rows else ""


def _deciding(cells: Cells, families: Mapping[str, Cells]) -> list[str]:
    return [
        "Share of native, mean over pairs (and domains).",
        "### Classes in common, no photo", *_by_family(families, _classes),
        "### Photos of one kind, all classes in common: which heads gain", *_by_family(families, _kinds),
        "### Strength and family of the two networks", _strength(cells, list(numbers.every(cells))),
        CEILING_NOTE, _ceiling(cells, list(numbers.every(cells))),
    ]  # fmt: skip


def _row_of(words: str, cells: Cells, ones: Sequence[One], wanted: Wanted) -> list[str]:
    found = [numbers.means(ones, kinds, wanted) for kinds in numbers.groups(cells).values()]
    return [words, *(_percent(_mean([share for _, share in part])) for part in found)]


def _classes(cells: Cells, ones: Sequence[One]) -> str:
    first = [one for one in ones if one.seed == 0]
    rows = [one for one in first if one.row["way"] == "joined" and one.row["classes"]]
    pools = sorted({(one.row["classes"], one.row["pool"] or "", one.row["photos"]) for one in rows})
    few = {(pool, count) for classes, pool, count in pools if classes < ALL_CLASSES}
    body = []
    for classes, pool, count in sorted(pools, key=lambda found: (found[1:], found[0])):
        if (pool, count) in few:
            words = f"{classes:,} of ImageNet" + (f", and {count:,} photos of {pool}" if pool else "")
            wanted = _exactly(classes, pool or None, count)
            body.append(_row_of(words, cells, rows, wanted))
    for way in dict.fromkeys(one.row["way"] for one in first if one.row["way"].startswith("joined by the classes")):
        chosen = [one for one in first if one.row["way"] == way]
        words = f"{chosen[0].row['classes']} of {way.rpartition(' ')[2]}, from heads that learned from its labels"
        body.append(_row_of(words, cells, chosen, lambda one, kind: True))
    return markdown_table([["classes in common", *numbers.groups(cells)], *body])


def _exactly(classes: int, pool: str | None, count: int) -> Wanted:
    return lambda one, kind: (
        one.row["way"] == "joined"
        and (one.row["classes"], one.row["pool"], one.row["photos"]) == (classes, pool, count)
    )


def _kinds(cells: Cells, ones: Sequence[One]) -> str:
    """One join for all heads: rows are pools, columns are kinds of heads."""
    kinds = list(next(iter(numbers.first_cells(cells).values()))["native"])
    rows = [one for one in ones if one.row["way"] == "joined" and one.row["part"] in (None, "train")]
    pools = {(one.row["pool"], one.row["photos"]) for one in rows}
    body = []
    for pool, count in sorted(pools, key=lambda pool: (kinds.index(pool[0]) if pool[0] else -1, pool[1])):
        wanted = _exactly(ALL_CLASSES, pool, count)
        shares = [_percent(_mean([share for _, share in numbers.means(rows, [kind], wanted)])) for kind in kinds]
        own = [f"**{share}**" if kind == pool else share for kind, share in zip(kinds, shares, strict=True)]
        body.append([f"{count:,} of {pool}" if pool else "none", *own])
    return markdown_table([["photos that the join saw", *kinds], *body])


def _ceiling(cells: Cells, ones: Sequence[One]) -> str:
    """What is reached of the heads that were retrained, by which of the two networks is the stronger."""
    sides: dict[str, list[One]] = {}
    for one in ones:
        strength = "weaker" if one.retrained[IMAGENET] < one.native[IMAGENET] else "stronger"
        is_one = numbers.family(one.new) == numbers.family(one.old)
        words = "one family" if is_one else f"two families, the new one {strength}"
        sides.setdefault(words, []).append(one)
    alone = rows_of("photos alone", OWN, largest(ones))
    ways = {
        "classes": numbers.joined_by(ones, NONE),
        "and own photos": numbers.joined_by(ones, OWN),
        "own photos alone": alone,
    }
    found = {name: kinds for name, kinds in numbers.groups(cells).items() if IMAGENET not in kinds}
    columns = [(kinds, wanted) for kinds in found.values() for wanted in ways.values()]
    body = [
        [f"{words} ({len({(one.new, one.old) for one in mine})} pairs)"]
        + [_percent(_mean(numbers.ceilings(mine, *column))) for column in columns]
        for words, mine in sorted(sides.items())
    ]
    return markdown_table([["networks", *(f"{name}, {way}" for name in found for way in ways)], *body], words=(0,))


def _strength(cells: Cells, ones: Sequence[One]) -> str:
    """By pair: how strong both networks are on ImageNet, and what is kept."""
    first, body, found = numbers.first_cells(cells), [], numbers.groups(cells)
    ranked = sorted(first, key=lambda pair: ratio(*(first[pair][key][IMAGENET] for key in ("retrained", "native"))))
    for new, old in ranked:
        own = [first[new, old][key][IMAGENET] for key in ("retrained", "native")]
        family = "same" if numbers.family(new) == numbers.family(old) else "other"
        columns = []
        for kinds in found.values():
            for source in (NONE, OWN):
                wanted = numbers.joined_by(ones, source)
                share = numbers.pair_share(ones, new, old, kinds, wanted)
                columns.append("n/a" if share is None else _percent(share))
        body.append([f"{_name(new)} under {_name(old)}", family, *(f"{value:.3f}" for value in own), *columns])
    heads = [f"{name}, {words}" for name in found for words in ("classes", "and photos")]
    return markdown_table([["pair", "family", "new one's top-1", "old one's top-1", *heads], *body], words=(0, 1))


Loss = tuple[float, One, str]


def _failing(cells: Cells, ones: Sequence[One]) -> list[str]:
    """Where photos cost what classes gave, and where something simpler is better."""
    every = _changes(ones)
    lost = sorted((found for found in every if found[0] < 0), key=lambda found: found[0])
    text = [
        f"Photos on top of the classes cost accuracy in {len(lost)} of {len(every)} cells (pair, pool, draw and head), "
        f"more than two points in {sum(change < -0.02 for change, *_ in lost)} of them.",
        *_simpler(ones),
    ]
    body = [
        [f"{_name(one.new)} under {_name(one.old)}", kind, f"{one.row['photos']:,} of {one.row['pool']}",
         f"{change:+.3f}", _percent(one.share(kind))]
        for change, one, kind in lost[:SHOWN_LOSSES]
    ]  # fmt: skip
    if not body:
        return [" ".join(text)]
    heading = ["pair", "head", "photos beside the classes", "change of accuracy by the photos", "share of native"]
    return [" ".join(text), "The largest losses:", markdown_table([heading, *body], words=(0, 1, 2))]


def _joined_with_photos(ones: Sequence[One]) -> list[One]:
    return [one for one in ones if one.row["pool"] and rows_of("joined", None)(one, str(one.row["pool"]))]


def _changes(ones: Sequence[One]) -> list[Loss]:
    """Accuracy with photos and classes less that with classes alone, by row and kind of head."""
    alone = {(one.new, one.old): one.row for one in ones if rows_of("joined", NONE)(one, IMAGENET)}
    return [
        (float(one.row["accuracy"][kind]) - float(alone[one.new, one.old]["accuracy"][kind]), one, kind)
        for one in _joined_with_photos(ones)
        for kind in one.native
    ]


def _simpler(ones: Sequence[One]) -> list[str]:
    """How often a map by photos alone is better than the join, under the head that its photos are of."""

    def key(one: One) -> tuple[Any, ...]:
        return one.new, one.old, one.seed, one.row["pool"], one.row["photos"], one.row["part"]

    joined, words = {key(one): one.row for one in _joined_with_photos(ones)}, []
    for way in ("photos alone", "Procrustes", "ridge"):
        pairs = [
            (one.row, joined[key(one)], one.row["pool"]) for one in ones if one.row["way"] == way and key(one) in joined
        ]
        better = sum(own["accuracy"][kind] > other["accuracy"][kind] for own, other, kind in pairs)
        if pairs:
            words.append(
                f"{way}, without the classes, is better under the photos' own head in {better} of {len(pairs)} cells."
            )
    return words


def _standard(cells: Cells, ones: Sequence[One]) -> str:
    first, body = list(numbers.first_cells(cells).values()), []
    found = {name: kinds for name, kinds in numbers.groups(cells).items() if name != "ImageNet"}

    def share(key: str, kinds: list[str]) -> str:
        pairs = [(result[key][kind], result["native"][kind]) for result in first for kind in kinds]
        accuracy, kept = _mean([value for value, _ in pairs]), _mean([ratio(value, own) for value, own in pairs])
        return f"{accuracy:.3f} ({100 * kept:.0f} %)"

    for words, name in (("centred", "centred logits"), ("centred, variance 1 for every photo", "normalized logits")):
        for who, word in (("its own network", "native"), ("the other network", "joined")):
            body.append([words, who, *(share(f"{name}, {word}", kinds) for kinds in found.values())])
    body.append(["features of the reference, joined by classes alone", "the other network", *_alone(ones, found)])
    return markdown_table([["coordinates", "run on", *found], *body], words=(0, 1))


def _alone(ones: Sequence[One], found: Mapping[str, list[str]]) -> list[str]:
    columns = []
    for kinds in found.values():
        measured = numbers.means(ones, kinds, rows_of("joined", NONE))
        columns.append(f"{_mean([value for value, _ in measured]):.3f} ({100 * _mean([s for _, s in measured]):.0f} %)")
    return columns


def _coverage(cells: Cells, ones: Sequence[One]) -> str:
    found: dict[str, list[Statement]] = {}
    for one in numbers.statements(ones):
        found.setdefault(one.source, []).append(one)
    body = []
    for source, stated in sorted(found.items()):
        covered = sum(one.is_covered for one in stated)
        body.append([
            source, str(len(stated)), f"{covered / len(stated):.0%}",
            f"{sum(one.low <= one.truth for one in stated) / len(stated):.0%}",
            f"{_mean([one.stated - one.truth for one in stated]):+.3f}",
            f"{_mean([one.high - one.low for one in stated]):.3f}",
            f"{sum(one.low <= one.kept for one in stated) / len(stated):.0%}",
        ])  # fmt: skip
    own = [one for one in numbers.statements(ones) if one.source != OTHER]
    pairs = sorted({one.pair for one in own})
    needed = [numbers.least_flattery([one for one in own if one.pair != pair], WANTED_COVERAGE) for pair in pairs]
    text = (
        f"For {WANTED_COVERAGE:.0%} in either group of the head's own kind the lower end has to go down by "
        f"{min(needed):.2f} to {max(needed):.2f}, whichever pair is left out."
    )
    heading = [
        "the join's photos, for the head", "cells", "interval holds the agreement on test photos",
        "truth is at least its lower end", "stated - true, mean", "width, mean",
        "share of native is at least its lower end",
    ]  # fmt: skip
    return markdown_table([heading, *body]) + "\n\n" + text


def _document(cells: Cells, command: str) -> dict[str, Any]:
    kept = [{key: cell[key] for key in ("row", "seed", "result", "processor_seconds", "made")} for cell in _flat(cells)]
    return {"schema": 1, "command": command, "settings": _flat(cells)[0]["settings"]["photos"], "cells": _rounded(kept)}


def _flat(cells: Cells) -> list[Mapping[str, Any]]:
    return [cell for draws in cells.values() for cell in draws]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value

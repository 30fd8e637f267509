"""Pictures of the table of pretrained networks: who keeps how much, and what classes and photos are worth."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from studies import pretrained_numbers as numbers
from studies.pretrained_numbers import DOMAINS, NONE, OWN, Cells, One, Wanted, photos, rows_of
from timm_compat.evaluation.plots import heat_map, lines

WAYS = ("joined", "photos alone", "Procrustes", "ridge")


def draw(cells: Cells, ones: Sequence[One], folder: Path) -> None:
    """Write ``pretrained.png`` and ``pretrained_photos.png``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    main = next(iter(numbers.by_family(cells).values()))  # pairs of one family, where there are such
    worth = _worth(main, list(numbers.every(main)))
    for figure, name in ((_matrices(cells, ones), "pretrained.png"), (worth, "pretrained_photos.png")):
        figure.savefig(folder / name, dpi=80)
        plt.close(figure)


def _matrices(cells: Cells, ones: Sequence[One]) -> Any:
    """Share of native of every network (rows) under every head (columns)."""
    import matplotlib.pyplot as plt

    names, groups = numbers.networks(cells), numbers.groups(cells)
    width, height = 3.2 + 1.1 * len(names), 2.2 + 0.7 * len(names)
    size = (width * len(groups), 2 * height)
    figure, axes = plt.subplots(2, len(groups), figsize=size, layout="constrained", squeeze=False)
    for line, (words, source) in enumerate({"classes alone": NONE, f"classes and photos of {OWN}": OWN}.items()):
        wanted = numbers.joined_by(ones, source)
        for axis, (name, kinds) in zip(axes[line], groups.items(), strict=True):
            shares = [[_share(ones, new, old, kinds, wanted) for old in names] for new in names]
            title = f"{'heads of the domains' if name == DOMAINS else f'head over {name}'}, {words}"
            own = np.eye(len(names), dtype=bool)
            heat_map(np.array(shares), names, names, native=own, title=title, ax=axis, colorbar=False)
    figure.suptitle("share of native accuracy")
    return figure


def _share(ones: Sequence[One], new: str, old: str, kinds: Sequence[str], wanted: Wanted) -> float:
    found = 1.0 if new == old else numbers.pair_share(ones, new, old, kinds, wanted)
    return float("nan") if found is None else found


def _worth(cells: Cells, ones: Sequence[One]) -> Any:
    """Share of native against the number of photos, and of classes in common."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    main = numbers.main_kind(cells)
    pools = [one for one in ones if (one.row["pool"], one.row["part"]) == (main, "train")]
    counts = sorted({one.row["photos"] for one in pools})
    ways = {way: [_mean(pools, [main], rows_of(way, OWN, photos(count))) for count in counts] for way in WAYS}
    ways["joined by classes alone"] = [_mean(ones, [main], rows_of("joined", NONE))] * len(counts)
    text = {"xlabel": f"unlabelled photos of {main}", "ylabel": "share of native", "title": f"head over {main}"}
    lines(counts, ways, native=1.0, log=True, ax=axes[0], **text)
    rows = [one for one in ones if one.row["way"] == "joined" and one.row["pool"] is None]
    classes = sorted({one.row["classes"] for one in rows})
    worth = {
        name: [_of_classes(rows, count, kinds) for count in classes] for name, kinds in numbers.groups(cells).items()
    }
    text = {"xlabel": "ImageNet classes in common, no photo", "ylabel": "share of native", "title": "classes alone"}
    lines(classes, worth, native=1.0, log=True, ax=axes[1], **text)
    return figure


def _mean(ones: Sequence[One], kinds: Sequence[str], wanted: Wanted) -> float:
    found = numbers.means(ones, kinds, wanted)
    return statistics.fmean(share for _, share in found) if found else float("nan")


def _of_classes(rows: Sequence[One], count: int, kinds: Sequence[str]) -> float:
    return _mean(rows, kinds, lambda one, kind: one.row["classes"] == count)

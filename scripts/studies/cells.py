"""Every table of the study: its rows, and how one row is measured for one seed."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from studies import groups, joins, pairs, pretrained, upgrades
from studies.groups import Architectures, Chain, DataSets
from studies.joins import Join
from studies.pairs import Pair
from studies.pretrained import Under
from studies.tasks import Scale
from studies.upgrades import Upgrade

ALIGNED = {"alignment": "contrastive"}
COMMON, BOTH = ("common_classes",), ("common_classes", "rotation")
SAME = (0, 0)  # one architecture for both members
SMALL_JOIN = ((0, 1), (1, 0))

PRETRAINED = "pretrained"  # its rows are all pairs of the networks that are at hand
LITE0, LITE2 = "tf_efficientnet_lite0", "tf_efficientnet_lite2"

Row = Pair | Architectures | Chain | DataSets | Join | Under | Upgrade

TABLES: dict[str, dict[str, Row]] = {
    "methods": {
        "nothing": Pair(overlap="4 of 7"),
        "rotation": Pair(("rotation",), overlap="4 of 7"),
        "simplex": Pair(("simplex",), overlap="4 of 7"),
        "common classes": Pair(COMMON, overlap="4 of 7"),
        "common classes, rotation": Pair(BOTH, overlap="4 of 7"),
        "alignment": Pair(overlap="4 of 7", settings=ALIGNED),
        "common classes, alignment": Pair(COMMON, overlap="4 of 7", settings=ALIGNED),
        "both, then B joined to A": Pair(COMMON, overlap="4 of 7", settings=ALIGNED, join=True),
        "alignment of every image": Pair(overlap="4 of 7", settings={**ALIGNED, "alignment_fraction": 1.0}),
        "initial weights, A twice": Pair(("initial_weights",), overlap="4 of 7", backbones=SAME),
        "common, initial, A twice": Pair(("common_classes", "initial_weights"), overlap="4 of 7", backbones=SAME),
    },
    "same_classes": {
        "nothing": Pair(),
        "rotation": Pair(("rotation",)),
        "common classes": Pair(COMMON),
        "common classes, alignment": Pair(COMMON, settings=ALIGNED),
        "initial weights, A twice": Pair(("initial_weights",), backbones=SAME),
        "rotation, initial, A twice": Pair(("rotation", "initial_weights"), backbones=SAME),
        "common classes, A twice": Pair(COMMON, backbones=SAME),
        "nothing, A twice": Pair(backbones=SAME),
    },
    "overlap": {
        "2 of 5: nothing": Pair(overlap="2 of 5"),
        "2 of 5: common classes": Pair(COMMON, overlap="2 of 5"),
        "2 of 5: common classes, alignment": Pair(COMMON, overlap="2 of 5", settings=ALIGNED),
        "1 of 5: common classes, alignment": Pair(COMMON, overlap="1 of 5", settings=ALIGNED),
        "0 of 5: nothing": Pair(overlap="0 of 5"),
        "0 of 5: alignment": Pair(overlap="0 of 5", settings=ALIGNED),
    },
    "interface": {
        "random heads, no normalization, decay 1e-4": Pair(
            COMMON, random_heads=True, space={"normalization": "none"}, settings={"head_weight_decay": 1e-4}
        ),
        "zero heads, no normalization, decay 1e-4": Pair(
            COMMON, space={"normalization": "none"}, settings={"head_weight_decay": 1e-4}
        ),
        "zero heads, batch, decay 1e-4": Pair(COMMON, settings={"head_weight_decay": 1e-4}),
        "zero heads, layer, decay 5": Pair(COMMON, space={"normalization": "layer"}),
    },
    "feature_dim": {
        str(size): Pair(COMMON, overlap="4 of 7", settings=ALIGNED, space={"feature_dim": size})
        for size in (16, 128, 512)
    },
    "split": {
        f"{words}, stage {stage}": Pair(
            methods, overlap="4 of 7", space={"level": "map"}, arguments={"out_index": stage}, head={"depth": 2}
        )
        for words, methods in (("rotation", ("rotation",)), ("common classes", COMMON))
        for stage in (1, 3)
    },
    "architectures": {
        "trained apart": Architectures(),
        "common classes, alignment": Architectures(COMMON, ALIGNED),
    },
    "chain": {"common classes": Chain(), "common classes, aligned with the first": Chain(align=True)},
    "data_sets": {
        "nothing": DataSets(),
        "rotation, initial weights": DataSets(("rotation", "initial_weights")),
        "common classes": DataSets(COMMON),
        "common classes, alignment": DataSets(COMMON, ALIGNED),
    },
    "join": {
        "64 features": Join(),
        "16 features": Join(16, SMALL_JOIN, (), methods=False),
        "256 features": Join(256, SMALL_JOIN, (), methods=False),
    },
    "gallery": {
        f"{photos}: {words}": Upgrade(photos, old, new)
        for photos in ("caltech101", "pacs")
        for words, old, new in (("lite0 to lite2", LITE0, LITE2), ("lite2 to lite0", LITE2, LITE0))
    },
}
MEASURES: dict[type, Callable[..., dict[str, Any]]] = {
    Pair: pairs.measure,
    Architectures: groups.architectures,
    Chain: groups.chain,
    DataSets: groups.data_sets,
    Join: joins.measure,
    Upgrade: upgrades.measure,
}


def measure(row: Row, scale: Scale, seed: int) -> dict[str, Any]:
    """One cell."""
    if isinstance(row, Under):
        return pretrained.measure(row, seed)
    return MEASURES[type(row)](row, scale, seed)


def settings(row: Row, scale: Scale) -> dict[str, Any]:
    """What must agree for a kept cell to stand: which data and how much of it, not where it lies."""
    if isinstance(row, Under):
        return row.settings()
    photos = ("photos_root", "weights_root")
    known = {key: value for key, value in asdict(scale).items() if isinstance(row, Upgrade) or key not in photos}
    return {key: value is not None if key.endswith("root") else value for key, value in known.items()}

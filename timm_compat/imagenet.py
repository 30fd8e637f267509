"""ImageNet's classes as in timm: WordNet ids are their names, words are shown to people."""

import functools
import re
from collections.abc import Sequence
from typing import Any

from timm_compat.vocabulary import printable

WORDNET_ID = re.compile(r"n\d{8}", re.ASCII)


def imagenet_names(num_classes: int) -> tuple[str, ...] | None:
    """The WordNet ids of a classifier over ImageNet, in the order of its logits; None for another number of classes.

    Args:
        num_classes: 1,000, or that of one of the larger subsets (12k, 21k, 22k), which timm tells apart by it.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return None if subset is None else tuple(ImageNetInfo(subset).label_names())


def class_words(name: str) -> str:
    """What a class is called in words: "tench, Tinca tinca" for "n01440764"; any other name as it is."""
    if WORDNET_ID.fullmatch(name) is None:
        return name
    try:
        return str(_wordnet().label_name_to_description(name))
    except KeyError:
        return name


def short_words(name: str) -> str:
    """The first of a class's words, fit for a terminal: "tench" for "n01440764"; any other name as it is."""
    words = class_words(name)
    return printable(words if words == name else words.partition(",")[0])


def named_in_words(name: str) -> str:
    """A class name with what it is called: "n01440764 (tench)"; any other name as it is."""
    words = short_words(name)
    return name if words == printable(name) else f"{name} ({words})"


def listed_words(names: Sequence[str], most: int = 5) -> str:
    """The first names in words, fit for a terminal, and how many more there are: "tench; goldfish; 998 more"."""
    shown = [short_words(name) for name in names[:most]]
    return "; ".join(shown + ([f"{len(names) - most:,} more"] if len(names) > most else []))


@functools.cache
def _wordnet() -> Any:
    from timm.data import ImageNetInfo

    return ImageNetInfo()

"""Identical initial weights (IIW): members of one architecture start from the same weights.

They are not stored but generated: the same seed, architecture and arguments give the same numbers on every machine
with the same PyTorch. The space keeps a digest for each architecture, and whoever joins later is checked against it.
Gygli et al., AAAI 2021 (https://arxiv.org/abs/2004.03898).
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from timm_compat.methods.method import Method
from timm_compat.seeding import seeded

T = TypeVar("T")


class InitialWeights(Method):
    """No head and no loss: what is shared is the start of every extractor of one architecture."""

    name = "initial_weights"


def same_start(seed: int, build: Callable[[], T]) -> T:
    """What ``build`` makes when all its random numbers come from the space's seed."""
    with seeded(seed, "initial_weights"):
        return build()


def start_name(architecture: str, out_index: int | None, model_args: Mapping[str, Any]) -> str:
    """What must agree for two networks to have weights of the same names and shapes, as a key of the digests."""
    stage = [] if out_index is None else [f"out_index={out_index}"]
    return " ".join([architecture, *stage, *(f"{key}={value}" for key, value in sorted(model_args.items()))])

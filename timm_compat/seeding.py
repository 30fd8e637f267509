"""Seeds derived from names, so that the same recipe gives the same numbers in any order of construction."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *names: str) -> int:
    """A 63-bit seed for one named use, from the user's seed (SHA-256 of both)."""
    text = "\x1f".join((str(seed), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str) -> torch.Generator:
    """A CPU random generator for one named use."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


@contextmanager
def seeded(seed: int, *names: str) -> Iterator[None]:
    """Run a block under its own seed on the CPU and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *names))
        yield


def seed_device(seed: int, device: torch.device) -> None:
    """Seed what is drawn on a device, as ``torch.manual_seed`` does, which on a CPU reaches for the GPUs as well."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)

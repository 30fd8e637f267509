"""A step of the trainer and a step by hand, in turns, in several fresh processes whose pairs are put together.

Single steps in turns: what slows the machine for seconds slows both. Fresh processes: where memory lies and what the
allocator has learned is settled once a process, and moves all its ratios the same way.
"""

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

import timm_compat as tc
from benchmarks.clock import now, spread

PROCESSES = 3
WARM_UP = 2  # ratios that do not count

Pairs = list[tuple[float, float]]  # seconds of ours and of theirs


class Turns(tc.Callback):
    """Does a step by hand after every step of the trainer.

    Ours is everything from the end of a step by hand to the end of the next step, the ends of epochs between them too.
    """

    def __init__(self, by_hand: Callable[[], Any], device: str) -> None:
        self.by_hand, self.device = by_hand, device
        self.pairs: Pairs = []

    def on_train_begin(self) -> None:
        self.since = now(self.device)

    def on_step_end(self, step: int) -> None:
        ours = now(self.device)
        self.by_hand()
        theirs = now(self.device)
        self.pairs.append((ours - self.since, theirs - ours))
        self.since = now(self.device)


def pairs_of(fit: Callable[[tc.Callback], Any], by_hand: Callable[[], Any], device: str, together: int = 1) -> Pairs:
    """Seconds of a step, ours and by hand, without those for warming up.

    Args:
        fit: trains with this callback.
        by_hand: the same, a step a call.
        device: "cpu" or "cuda".
        together: steps of which a pair is the mean, such as those of an epoch.
    """
    turns = Turns(by_hand, device)
    fit(turns)
    blocks = [turns.pairs[start : start + together] for start in range(0, len(turns.pairs), together)]
    means = [tuple(sum(seconds) / together for seconds in zip(*block, strict=True)) for block in blocks]
    return [(ours, theirs) for ours, theirs in means[WARM_UP:]]


def in_processes(work: Callable[..., Pairs], *arguments: Any) -> dict[str, Any]:
    """What several fresh processes find: ratios of all pairs, the median of each process, and the pairs themselves.

    Args:
        work: of a module, so that a fresh process finds it.
        *arguments: can be pickled.
    """
    found = [_in_fresh_process(work, arguments) for _ in range(PROCESSES)]
    pairs = [pair for each in found for pair in each]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "seconds": {"ours": ours, "by hand": theirs},
        "ratios": {"ours": spread(_ratios(pairs))},
        "processes": [statistics.median(_ratios(each)) for each in found],
        "pairs": found,
        "against": "by hand",
        "repeats": len(found[0]),
    }


def _in_fresh_process(work: Callable[..., Pairs], arguments: Sequence[Any]) -> Pairs:
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)) as process:
        return process.submit(work, *arguments).result()


def _ratios(pairs: Pairs) -> list[float]:
    return [ours / theirs for ours, theirs in pairs]

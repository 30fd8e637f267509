"""Two ways of doing the same, timed in turns, so that what slows the machine slows both."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Run = Callable[[], float]  # does the work and gives its seconds


def now(device: str) -> float:
    """Seconds: wall time on a GPU, once it is idle; processor time of this process on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    # On a machine that others use, wall time is mostly theirs.
    return time.process_time()


def timed(work: Callable[[], Any], device: str, times: int = 1) -> Run:
    """A run of that many repetitions; seconds of one."""

    def run() -> float:
        start = now(device)
        for _ in range(times):
            work()
        return (now(device) - start) / times

    return run


def in_turns(runs: Mapping[str, Run], repeats: int) -> dict[str, Any]:
    """Seconds of every run, and the ratio of all others to the last one, round by round.

    Each run is done once before. A ratio is a median with its quartiles.
    """
    for run in runs.values():
        run()
    rounds = [{name: run() for name, run in runs.items()} for _ in range(repeats)]
    *ours, base = runs
    seconds = {name: statistics.median(times[name] for times in rounds) for name in runs}
    ratios = {name: spread([times[name] / times[base] for times in rounds]) for name in ours}
    return {"seconds": seconds, "ratios": ratios, "against": base, "repeats": repeats}


def spread(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3

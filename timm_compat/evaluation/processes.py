"""Work shared by several processes: whole batches go round, so that every number is that of one process, to the bit."""

import os
from typing import Any

import torch
from torch import Tensor


def current_process() -> tuple[int, int]:
    """(rank, number of processes) under ``accelerate launch`` or torchrun; (0, 1) otherwise."""
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not started and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0, 1
    state = _state()
    return state.process_index, state.num_processes


def own_batches(count: int, batch_size: int) -> list[Tensor]:
    """This process's batches of the positions 0 to ``count`` - 1; batch b belongs to process b modulo their number."""
    rank, processes = current_process()
    return list(torch.arange(count).split(batch_size)[rank::processes])


def gathered(rows: Tensor, count: int, batch_size: int) -> Tensor:
    """The rows (n, ...) of this process's batches and of all others', in order: (count, ...), on the CPU."""
    _, processes = current_process()
    if processes == 1:
        return rows.cpu()
    from accelerate.utils import gather

    batches = torch.arange(count).split(batch_size)
    shares = [torch.cat([torch.zeros(0, dtype=torch.int64), *batches[rank::processes]]) for rank in range(processes)]
    longest = max(len(share) for share in shares)
    padded = rows.new_zeros((longest, *rows.shape[1:])).to(_state().device)
    padded[: len(rows)] = rows
    everyone = gather(padded).cpu().split(longest)
    result = rows.new_zeros((count, *rows.shape[1:]), device="cpu")
    for share, part in zip(shares, everyone, strict=True):
        result[share] = part[: len(share)]
    return result


def _state() -> Any:
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without a word it would look for accelerators only, and take every process of torchrun on a CPU for the only one.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())

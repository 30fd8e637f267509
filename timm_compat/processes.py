"""Work divided among processes: batch by batch; sums are added up, rows are gathered in their order."""

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


def process_device() -> torch.device | None:
    """The device that a launcher gave this process; None where it runs alone."""
    return _state().device if current_process()[1] > 1 else None


def is_main_on_its_machine() -> bool:
    """Whether this process writes what all of its machine read."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on the tensor's device; every process calls this and gets it."""
    if current_process()[1] == 1:
        return tensor
    from accelerate.utils import reduce

    added: Tensor = reduce(tensor.detach().clone().to(_state().device), "sum")
    return added.to(tensor.device)


def agreed(value: Any) -> Any:
    """The first process's value, in every process."""
    if current_process()[1] == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def gathered(rows: Tensor | None, positions: Tensor, count: int) -> Tensor:
    """The rows of all processes in the order of their positions; every process calls this and gets it.

    Args:
        rows: (n, ...), this process's; None where it has none and does not know their shape.
        positions: (n,), int64, where they belong.
        count: rows of all processes together.

    Returns:
        (count, ...), on the CPU; zeros where no process has the row.
    """
    if current_process()[1] == 1:
        if rows is not None and len(rows) == count and torch.equal(positions.cpu(), torch.arange(count)):
            return rows.cpu()
        parts = [(positions.cpu(), rows)]
    else:
        parts = _exchanged(rows, positions)
    shape = next((tuple(part.shape[1:]) for _, part in parts if part is not None), ())
    kind = next((part.dtype for _, part in parts if part is not None), torch.float32)
    result = torch.zeros((count, *shape), dtype=kind)
    for places, part in parts:
        if part is not None and len(places):
            result[places] = part.cpu()
    return result


def _exchanged(rows: Tensor | None, positions: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    from accelerate.utils import gather, gather_object

    own = None if rows is None else (len(rows), tuple(rows.shape[1:]), str(rows.dtype).removeprefix("torch."))
    facts = gather_object([own])
    known = [fact for fact in facts if fact is not None]
    if not known:
        return [(positions.cpu(), None)]
    longest, (_, shape, kind) = max(fact[0] for fact in known), known[0]
    device = _state().device
    padded = torch.zeros((longest, *shape), dtype=getattr(torch, kind), device=device)
    places = torch.zeros(longest, dtype=torch.int64, device=device)
    if rows is not None:
        padded[: len(rows)], places[: len(rows)] = rows.to(device), positions.to(device)
    everyone, where = gather(padded).cpu().split(longest), gather(places).cpu().split(longest)
    counts = [0 if fact is None else fact[0] for fact in facts]
    return [(place[:n], part[:n]) for n, place, part in zip(counts, where, everyone, strict=True)]


def _state() -> Any:
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Otherwise it looks for accelerators only, and takes every process of torchrun on a CPU for the only one.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())

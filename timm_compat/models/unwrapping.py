"""Modules without the wrappers of torch.compile, DataParallel and DistributedDataParallel."""

from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

COMPILED = "_orig_mod"  # where torch.compile keeps the module; its class would cost a second to import


def unwrapped(module: Any) -> Any:
    """The module itself, however often it is wrapped; anything else as it is."""
    while isinstance(module, nn.Module) and (name := _inner(module)) is not None:
        module = module._modules[name]
    return module


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state under the names that it has without wrappers, its own or those of its parts."""
    state = dict(module.state_dict())
    if all(_inner(part) is None for part in module.modules()):
        return state
    return {plain_name(module, name): tensor for name, tensor in state.items()}


def plain_name(module: nn.Module | None, name: str) -> str:
    """The name that a parameter or buffer of a module has without wrappers."""
    kept = []
    for step in name.split("."):
        if module is None or step != _inner(module):
            kept.append(step)
        module = None if module is None else module._modules.get(step)
    return ".".join(kept)


def _inner(module: nn.Module) -> str | None:
    if COMPILED in module._modules:
        return COMPILED
    return "module" if isinstance(module, (DataParallel, DistributedDataParallel)) else None

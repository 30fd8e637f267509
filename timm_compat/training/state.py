"""Nested state (dicts and lists of numbers, strings and tensors) as JSON plus named tensors, and back; no pickle."""

from typing import Any

import torch
from torch import Tensor

TENSOR, KEYS = "tensor", "keys"


def split_state(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """JSON values with a place for every tensor, and the tensors by the name of their place.

    Raises:
        TypeError: something that is neither a container, a plain value nor a tensor.
    """
    tensors: dict[str, Tensor] = {}
    return _split(state, tensors), tensors


def join_state(values: Any, tensors: dict[str, Tensor]) -> Any:
    """What ``split_state`` took apart."""
    if isinstance(values, list):
        return [join_state(value, tensors) for value in values]
    if isinstance(values, dict):
        if TENSOR in values:
            return tensors[values[TENSOR]]
        return {_key(key): join_state(value, tensors) for key, value in values[KEYS]}
    return values


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: name}
    if isinstance(value, dict):
        # Pairs, because JSON turns keys that are numbers (an optimiser's) into strings.
        return {KEYS: [[_tag(key), _split(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_split(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"expected plain values and tensors, got {type(value).__name__}")


def _tag(key: Any) -> list[Any]:
    return [type(key).__name__, key]


def _key(tagged: list[Any]) -> Any:
    kind, key = tagged
    return int(key) if kind == "int" else key


def clone_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """A module's state as copies on the same device."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

"""Building a network whose weights come from a file: weights that will be overwritten are not initialised."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from timm_compat.models.budget import build_budget

M = TypeVar("M", bound=nn.Module)

# In-place functions and methods that give values and leave shape and type alone. A function of nn.init is seen as a
# whole: what it calls is not.
_VALUES_ONLY = frozenset(
    {
        *(function for name, function in vars(nn.init).items() if name.endswith("_") and not name.startswith("_")),
        *(Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.fill_, Tensor.zero_),
        *(Tensor.add_, Tensor.sub_, Tensor.mul_, Tensor.div_, Tensor.clamp_),
    }
)
_PLAIN = frozenset({type(None), bool, int, float, str})


class Blank(TorchFunctionMode):
    """A block in which new parameters keep whatever memory they got. Buffers on real devices are made as ever.

    Most of the time of building a network goes into random numbers. Every parameter must be loaded afterwards.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, unless it only gives values to a parameter."""
        given = kwargs or {}
        if func in _VALUES_ONLY:
            filled = args[0] if args else given.get("tensor")
            if isinstance(filled, nn.Parameter):
                return filled
        return func(*args, **given)


def build_shapes(build: Callable[[], M]) -> M:
    """A network without values, as a file describes it: takes no memory, and is given up where it gets out of hand.

    Raises:
        ComponentFileError: it is larger, or takes longer to build, than any network of use.
    """
    with build_budget(), torch.device("meta"), Blank():
        return build()


def with_tensors(shapes: M, build: Callable[[], M], tensors: Mapping[str, Tensor], *, copied: bool = True) -> M:
    """A network with all its tensors from a file, or from another network.

    Args:
        shapes: built on the meta device; filled in place where a file can hold all that it consists of.
        build: builds the same with values, for where something is computed that no file holds.
        tensors: the whole state.
        copied: whether the tensors are: what safetensors reads changes with its file.
    """
    if not _has_tied_parameters(shapes):
        shapes.load_state_dict(
            {name: tensor.clone() if copied else tensor for name, tensor in tensors.items()}, assign=True
        )
        if not any(map(_lacks_values, shapes.modules())):
            return shapes
    with Blank():
        network = build()
    network.load_state_dict(tensors)
    return network


def _has_tied_parameters(network: nn.Module) -> bool:
    # One parameter under two names would become two.
    return len(list(network.named_parameters(remove_duplicate=False))) > len(list(network.parameters()))


def _lacks_values(module: nn.Module) -> bool:
    """Whether a module itself, its parts aside, keeps a tensor without values, wherever it does."""
    kept = [value for name, value in vars(module).items() if name != "_modules" and value.__class__ not in _PLAIN]
    while kept:
        value = kept.pop()
        if isinstance(value, Tensor):
            if value.is_meta:
                return True
        elif isinstance(value, dict):
            kept.extend(value.values())
        elif isinstance(value, (list, tuple)):
            kept.extend(value)
    return False

"""The methods by name: this package's own, and those that others register."""

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from timm_compat.errors import ConfigError
from timm_compat.methods.common_classes import CommonClasses
from timm_compat.methods.initial_weights import InitialWeights
from timm_compat.methods.method import Method
from timm_compat.methods.self_supervised import FLIP, LOCATION, ROTATION, SelfSupervisedTask
from timm_compat.methods.simplex import Simplex
from timm_compat.seeding import generator

M = TypeVar("M", bound=Method)

_METHODS: dict[str, Method] = {
    method.name: method for method in (CommonClasses(), Simplex(), ROTATION, LOCATION, FLIP, InitialWeights())
}


def register_method(method: M) -> M:
    """Make a method known by its name to spaces, recipes and the trainer, in this process.

    Register it before loading a component of a space that uses it.

    Args:
        method: with a name of letters, digits and _.

    Returns:
        The method.

    Raises:
        ConfigError: no ``Method``, an invalid name, or one that another method has.

    Example:
        >>> import timm_compat as tc
        >>> def mirror(images, answers):
        ...     images = images.clone()
        ...     images[answers == 1] = images[answers == 1].flip(3)
        ...     return images
        >>> task = tc.register_method(tc.SelfSupervisedTask("mirror", 2, mirror))
        >>> tc.CompatSpace(8, methods=["mirror"]).shared["mirror.weight"].shape
        torch.Size([2, 8])
    """
    if not isinstance(method, Method):
        raise ConfigError(f"method: expected a Method, such as a SelfSupervisedTask, got {method!r:.80}")
    name = getattr(method, "name", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"method: expected a name of letters, digits and _, got {name!r}")
    if _METHODS.setdefault(name, method) is not method:
        raise ConfigError(f"method: expected a new name, got {name!r}, which is one of {', '.join(method_names())}")
    return method


def method_names() -> tuple[str, ...]:
    """The names of all methods, sorted."""
    return tuple(sorted(_METHODS))


def methods_of(names: Collection[str]) -> tuple[Method, ...]:
    """The methods of these names, in the order in which they were registered."""
    return tuple(method for name, method in _METHODS.items() if name in names)


def self_supervised_tasks(names: Collection[str] | None = None) -> tuple[SelfSupervisedTask, ...]:
    """The self-supervised tasks among these names, or all."""
    found = methods_of(_METHODS if names is None else names)
    return tuple(method for method in found if isinstance(method, SelfSupervisedTask))


def shared_shapes(names: Collection[str], feature_dim: int, num_classes: int) -> dict[str, Tensor]:
    """Names and shapes of the tensors that these methods share, "rotation.weight" and so on, on the meta device."""
    return {name: torch.empty(shape, device="meta") for name, _, _, shape in _shared(names, feature_dim, num_classes)}


def initial_tensors(names: Collection[str], feature_dim: int, num_classes: int, seed: int) -> dict[str, Tensor]:
    """What the shared tensors are before training, by name."""
    return {
        name: method.initial(key, shape, generator(seed, name))
        for name, method, key, shape in _shared(names, feature_dim, num_classes)
    }


def _shared(
    names: Collection[str], feature_dim: int, num_classes: int
) -> Iterator[tuple[str, Method, str, tuple[int, ...]]]:
    for method in methods_of(names):
        for key, shape in method.shapes(feature_dim, num_classes).items():
            yield f"{method.name}.{key}", method, key, shape


def check_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the given tensors as float32 on the CPU.

    Raises:
        ConfigError: other names or shapes than expected, or numbers that are not finite.
    """
    if given.keys() != expected.keys():
        raise ConfigError(f"shared: expected tensors {sorted(expected)}, got {sorted(given)}")
    for name, tensor in given.items():
        finite = bool(torch.isfinite(tensor).all())
        if tensor.shape != expected[name].shape or not finite:
            raise ConfigError(
                f"shared: {name}: expected finite numbers of shape {tuple(expected[name].shape)}, "
                f"got shape {tuple(tensor.shape)}{'' if finite else ' with NaN or infinity'}"
            )
    return {name: tensor.detach().float().cpu().clone() for name, tensor in given.items()}

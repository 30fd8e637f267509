"""The tensors of a space's auxiliary heads: their names and shapes, and what they start from."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from timm_compat.errors import ConfigError
from timm_compat.methods.self_supervised import TASKS
from timm_compat.methods.simplex import simplex_vertices
from timm_compat.seeding import generator


def expected_tensors(methods: Collection[str], feature_dim: int, num_classes: int) -> dict[str, Tensor]:
    """Names and shapes of the tensors that these methods share, on the meta device.

    ``rotation.weight`` and ``location.weight`` (4, D), ``flip.weight`` (2, D), ``common_classes.weight`` (K, D) and
    their biases, ``simplex.weight`` (D + 1, D).
    """
    rows = {name: task.num_classes for name, task in TASKS.items()}
    rows |= {"common_classes": num_classes, "simplex": feature_dim + 1}
    tensors: dict[str, Tensor] = {}
    for method in rows.keys() & set(methods):
        tensors[f"{method}.weight"] = torch.empty(rows[method], feature_dim, device="meta")
        if method != "simplex":
            tensors[f"{method}.bias"] = torch.empty(rows[method], device="meta")
    return tensors


def initial_tensors(methods: Collection[str], feature_dim: int, num_classes: int, seed: int) -> dict[str, Tensor]:
    """What the tensors are before training: weights uniform in +-1 / sqrt(D), biases 0, the simplex as it stays."""
    tensors: dict[str, Tensor] = {}
    for name, expected in expected_tensors(methods, feature_dim, num_classes).items():
        if name == "simplex.weight":
            tensors[name] = simplex_vertices(feature_dim)
        elif name.endswith("weight"):
            tensors[name] = (torch.rand(expected.shape, generator=generator(seed, name)) * 2 - 1) * feature_dim**-0.5
        else:
            tensors[name] = torch.zeros(expected.shape)
    return tensors


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

"""Thin extractors: the backbone's weights stay with the model that they came from, and are fetched from there."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.errors import ComponentFileError, ConfigError
from timm_compat.models.unwrapping import plain_state
from timm_compat.storage.base import Base, base_file, resolve_base
from timm_compat.storage.facts import Facts
from timm_compat.storage.files import Tensors, largest_file, read_safetensors
from timm_compat.storage.source import Where

KEY, WEIGHT, IDENTITY = "interface_weight", "projection.weight", "identity"
MAX_CLASSIFIER_BYTES = 2**28  # what a base may hold besides the backbone: its classifier


def find_base(model: nn.Module, facts: Facts, unbounded: Collection[str]) -> Base:
    """Where a backbone's weights are, to the bit.

    Args:
        model: the backbone.
        facts: name ``base_model`` and, where it is known, its commit.
        unbounded: names of tensors that may hold infinity.

    Raises:
        ConfigError: no base model is known, or its weights are not the backbone's.
        HubError: the base cannot be looked at.
    """
    if facts.base_model is None:
        raise ConfigError(
            "thin: expected a base model that holds the backbone's weights, got none; load it by name with "
            'pretrained=True, set facts = tc.Facts(base_model="owner/name"), or save it whole'
        )
    expected = plain_state(model)
    base, path = resolve_base(facts.base_model, facts.base_model_commit, _most_bytes(expected), {})
    try:
        held = read_safetensors(path, expected, unbounded, convert=True, whole=False)
    except ComponentFileError as error:
        raise ConfigError(
            f"thin: expected the backbone's weights in {base}, got others ({error}); save it whole"
        ) from error
    changed = [name for name, tensor in expected.items() if not torch.equal(tensor.detach().cpu(), held[name])]
    if changed:
        raise ConfigError(
            f"thin: expected the backbone's weights to be those of {base}, got others in {len(changed)} of "
            f"{len(expected)} tensors, such as {changed[0]}: it was trained; save it whole"
        )
    return base


def base_tensors(
    base: Base, expected: Tensors, unbounded: Collection[str], file: str | Path | None, where: Where
) -> dict[str, Tensor]:
    """The backbone's tensors out of its base's file, checked; anything else in the base is ignored.

    Args:
        base: as the component names it.
        expected: names, shapes and dtypes of the backbone's tensors.
        unbounded: names of tensors that may hold infinity.
        file: the base's weights on disk; fetched if None.
        where: ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        ComponentFileError: other weights than the component names.
        HubError: they cannot be fetched.
    """
    path = base_file(base, file, _most_bytes(expected), where)
    return read_safetensors(path, expected, unbounded, convert=True, whole=False)


def leave_out_identity(interface: dict[str, Tensor]) -> dict[str, str]:
    """What the config says in place of an interface's weight that is the identity, as ``split`` makes it."""
    weight = interface[WEIGHT]
    if weight.ndim != 2 or not torch.equal(weight, torch.eye(*weight.shape).to(weight)) or len(set(weight.shape)) > 1:
        return {}
    del interface[WEIGHT]
    return {KEY: IDENTITY}


def implied_identity(config: Mapping[str, Any], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weight that a config says is the identity; it is taken out of what the file is expected to hold.

    Raises:
        ComponentFileError: something else is said, or the weight is not square.
    """
    if KEY not in config:
        return {}
    shape = tuple(expected[WEIGHT].shape)
    if config[KEY] != IDENTITY or len(shape) != 2 or shape[0] != shape[1]:
        raise ComponentFileError(
            f"config.json: {KEY}: expected {IDENTITY!r} for a square weight, got {config[KEY]!r:.80} for {shape}"
        )
    return {WEIGHT: torch.eye(shape[0], dtype=expected.pop(WEIGHT).dtype)}


def _most_bytes(expected: Tensors) -> int:
    return largest_file(expected) + MAX_CLASSIFIER_BYTES

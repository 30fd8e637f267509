"""Whether timm rebuilds a model from its name and arguments: compared by outputs, not by names and shapes alone.

A model may have been changed since timm built it: another pooling, other activations, another image size. What timm's
arguments can express is recorded; anything else is refused, as it would be loaded as another network.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import get_act_layer
from torch import Tensor, nn

from timm_compat.errors import ConfigError
from timm_compat.models.backbone import TIMM_ERRORS, size_text
from timm_compat.models.blank import Blank, with_tensors
from timm_compat.models.evaluating import evaluating
from timm_compat.models.unwrapping import plain_state

TOLERANCE = 1e-4  # of the largest output; the same network on the same machine differs by rounding at most
ACTIVATIONS = ("relu", "gelu", "silu", "relu6", "leaky_relu", "elu", "celu", "selu", "mish", "hard_swish", "sigmoid")
SOME_CLASSES = 2
TRIAL_SIDE = 128  # pixels
PLAIN = (bool, int, float, str, tuple, type(None))
NO_MATTER = ("training", "num_classes", "drop_rate", "head_drop", "p", "drop_prob")  # not in evaluation


def current_arguments(model: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """timm's arguments that rebuild a model as it is now: pooling, activations and image size may have been changed.

    Args:
        model: timm's, without classifier.
        args: what it was built with.
    """
    try:
        first = _on_meta(model, args)
        changed = _changes(model, first)
        second = _on_meta(model, {**args, **changed}) if changed else first
    except TIMM_ERRORS:  # the architecture does not take them; saving will tell what cannot be rebuilt
        return dict(args)
    return {**args, **changed} if _shapes(second) == _shapes(model) else dict(args)


@torch.no_grad()
def check_rebuilds(
    model: Any,
    args: Mapping[str, Any],
    input_size: tuple[int, int, int],
    forward: Callable[[Any, Tensor], Tensor] = lambda model, images: model(images),
) -> None:
    """Refuse a model that timm would rebuild as another one; a random image tells, a small one where that will do.

    Args:
        model: timm's, with or without classifier; left as it is.
        args: timm's arguments.
        input_size: (C, H, W) of its images.
        forward: what is compared.

    Raises:
        ConfigError: other weights or other outputs; names the first difference.
    """
    name, settings = model.pretrained_cfg["architecture"], args or "its defaults"
    try:
        rebuilt = _on_meta(model, args)
    except TIMM_ERRORS as error:
        raise ConfigError(f"{name}: expected a model that timm builds with {settings}, got {error}") from error
    others = sorted(key for key, _ in _shapes(model) ^ _shapes(rebuilt))
    if others:
        raise ConfigError(
            f"{name}: expected a model as timm builds it with {settings}, got {len(others)} other weights, {others[0]} "
            "first; only architectures that timm can rebuild are saved"
        )
    weight = next(model.parameters())
    rebuilt = with_tensors(rebuilt, partial(_build, model, args), plain_state(model), copied=False).to(weight.device)
    whole = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    with evaluating(model, rebuilt):
        try:  # a third of the pixels takes a third of the time
            image = whole[..., :TRIAL_SIDE, :TRIAL_SIDE]
            own = forward(model, image)
        except TIMM_ERRORS:  # not every architecture takes other sizes
            image = whole
            own = forward(model, image)
        other = forward(rebuilt, image)
    if not _are_close(own, other):
        raise ConfigError(
            f"{name}: expected a model as timm builds it with {settings}, got one that differs at "
            f"{size_text(image.shape[-2:])} pixels: {_difference(model, rebuilt)}. It would come back as another "
            "network: say the change in timm's arguments (global_pool=, act_layer= ...) where the model is created, "
            "then load its weights with load_state_dict"
        )


def classifier_names(model: Any, args: Mapping[str, Any]) -> set[str]:
    """Names of the tensors that a backbone lacks and its architecture's classifier has, norms before it included."""
    built = {name for name, _ in _shapes(_on_meta(model, args, num_classes=SOME_CLASSES))}
    return built - plain_state(model).keys()


def _build(model: Any, args: Mapping[str, Any], num_classes: int | None = None) -> Any:
    count = getattr(model, "num_classes", 0) if num_classes is None else num_classes
    return timm.create_model(model.pretrained_cfg["architecture"], num_classes=count, **args)


def _on_meta(model: Any, args: Mapping[str, Any], num_classes: int | None = None) -> Any:
    with torch.device("meta"), Blank():
        return _build(model, args, num_classes)


def _shapes(model: nn.Module) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(tensor.shape)) for name, tensor in plain_state(model).items()}


def _changes(model: Any, built: Any) -> dict[str, Any]:
    readers = {"global_pool": _pooling, "img_size": _image_size}
    found = {key: read(model) for key, read in readers.items() if read(model) not in (None, read(built))}
    activation = _new_activation(model, built)
    return found if activation is None else {**found, "act_layer": activation}


def _pooling(model: Any) -> str | None:
    # The head's own comes first: timm leaves the model's text at what it was built with.
    head = getattr(model, "head", None)
    places = (getattr(head, "global_pool", None), getattr(head, "pool_type", None), getattr(model, "global_pool", None))
    names = (getattr(place, "pool_type", place) for place in places)
    return next((name for name in names if isinstance(name, str)), None)


def _image_size(model: Any) -> tuple[int, int] | None:
    return getattr(getattr(model, "patch_embed", None), "img_size", None)


def _new_activation(model: nn.Module, built: nn.Module) -> str | None:
    """timm's name of the one activation that stands wherever another one was built; None where it is not so."""
    mine, theirs = dict(model.named_modules()), dict(built.named_modules())
    pairs = {(_kind(theirs[key]), _kind(mine[key])) for key in mine.keys() & theirs.keys()}
    new = {(old, now) for old, now in pairs if old != now}
    if len(new) != 1:
        return None
    names = {_kind(get_act_layer(name)): name for name in ACTIVATIONS}
    old, now = new.pop()
    return names.get(now) if (old, old) not in pairs else None


def _kind(module: Any) -> str:
    return (module if isinstance(module, type) else type(module)).__name__


def _are_close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    finite = one[one.isfinite()]
    largest = finite.abs().max().item() if len(finite) else 0.0
    # An extractor of NaN is none of our business here: writing its weights refuses them.
    return torch.allclose(one, other, rtol=0, atol=TOLERANCE * largest, equal_nan=True)


def _difference(model: nn.Module, rebuilt: nn.Module) -> str:
    mine, theirs = ({key: _described(part) for key, part in each.named_modules()} for each in (model, rebuilt))
    for key in [*mine, *theirs]:
        own, built = mine.get(key, {}), theirs.get(key, {})
        for what in {**own, **built}:
            if own.get(what) != built.get(what):
                return f"{key or 'the model'}: {what} is {own.get(what)!r:.80}, timm builds {built.get(what)!r:.80}"
    return "no module tells how; perhaps a hook, or a function that was replaced"


def _described(module: nn.Module) -> dict[str, Any]:
    plain = {name: value for name, value in vars(module).items() if isinstance(value, PLAIN) and name not in NO_MATTER}
    return {"layer": _kind(module), **{name: value for name, value in plain.items() if not name.startswith("_")}}

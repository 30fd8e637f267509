"""Where a backbone comes from: timm's registry, or a model that timm built already."""

import copy
import difflib
from typing import Any

import timm
import torch
from timm.models import get_arch_name, is_model, list_models, model_entrypoint
from torch import nn

from timm_compat.errors import BackboneError, ConfigError
from timm_compat.models.backbone import (
    TIMM_ERRORS,
    Backbone,
    has_fixed_size,
    parse_image_size,
    preprocessing_of,
    size_text,
)
from timm_compat.models.rebuilding import current_arguments

# Arguments of timm.create_model that are set here, or that name files and places.
RESERVED_ARGUMENTS = frozenset(
    {
        *("cache_dir", "checkpoint_path", "features_only", "level", "model_name", "num_classes", "out_index"),
        *("out_indices", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args"),
    }
)
DOWNLOAD_ERRORS = (OSError,)
MAX_CHANNELS = 1_024


def build_backbone(
    model_name: str,
    *,
    level: str = "pooled",
    out_index: int = -1,
    pretrained: bool = False,
    img_size: int | tuple[int, int] | None = None,
    **timm_kwargs: Any,
) -> Backbone:
    """A backbone from timm's registry.

    Args:
        model_name: any name that ``timm.create_model`` takes: ``arch``, ``arch.tag``, ``hf-hub:...``.
        level: "pooled" or "map".
        out_index: the stage at level "map".
        pretrained: whether to load timm's weights.
        img_size: H = W, or (H, W), of the images; handed to timm where the architecture's size is fixed.
        **timm_kwargs: timm's own keywords (``in_chans``, ``drop_rate``, ``drop_path_rate``, ``global_pool`` ...).

    Raises:
        BackboneError: unknown name (close matches are listed), arguments that the architecture does not take, or
            weights that cannot be loaded.
    """
    size = parse_image_size(img_size)
    model = build_model(model_name, 0, pretrained=pretrained, img_size=size, **timm_kwargs)
    named = ":" not in model_name
    return Backbone(model, _arguments(model), level=level, out_index=out_index, image_size=size, as_registered=named)


def build_model(
    model_name: str,
    num_classes: int | None = None,
    /,  # timm's keywords may not name it
    *,
    pretrained: bool = False,
    img_size: tuple[int, int] | None = None,
    **timm_kwargs: Any,
) -> Any:
    """A model from timm's registry, with a classifier over ``num_classes``; timm's own classifier if None.

    Args:
        model_name: any name that ``timm.create_model`` takes.
        num_classes: 0 for none.
        pretrained: whether to load timm's weights.
        img_size: (H, W), handed to timm where the architecture's size is fixed.
        **timm_kwargs: timm's own keywords.

    Raises:
        BackboneError: as ``build_backbone``.
        ConfigError: a keyword that timm_compat sets itself.
    """
    reserved = sorted(RESERVED_ARGUMENTS & timm_kwargs.keys())
    if reserved:
        raise ConfigError(f"{reserved[0]}: expected timm's model arguments, but this one is set by timm_compat itself")
    check_model_name(model_name)
    _check_channels(timm_kwargs.get("in_chans"))
    classes: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        if img_size is not None and _default_is_fixed(model_name):
            timm_kwargs["img_size"] = img_size
        model: Any = timm.create_model(model_name, pretrained=pretrained, **classes, **timm_kwargs)
    except DOWNLOAD_ERRORS as error:
        raise BackboneError(
            f"{model_name}: its pretrained weights could not be fetched ({error}); check the network, "
            "or build it with pretrained=False"
        ) from error
    except TIMM_ERRORS as error:
        raise BackboneError(
            f"{model_name}: timm could not build it with {timm_kwargs or 'its defaults'}, pretrained={pretrained} "
            f"({error}); drop the argument that it does not take, or choose another architecture"
        ) from error
    model._model_args = {**getattr(model, "_model_args", {}), **timm_kwargs}  # older versions of timm do not note them
    return model


def adopt_backbone(
    model: nn.Module, *, level: str = "pooled", out_index: int = -1, img_size: int | tuple[int, int] | None = None
) -> Backbone:
    """A backbone from a timm model that exists already, such as one the user trained; the model itself is not changed.

    Raises:
        BackboneError: not a model that timm built.
    """
    if not hasattr(model, "pretrained_cfg") or not hasattr(model, "head_hidden_size"):
        raise BackboneError(f"expected a model built by timm.create_model, got {type(model).__name__}")
    body: Any = copy.deepcopy(model)
    if hasattr(body, "reset_classifier"):
        body.reset_classifier(0)
    args, size = current_arguments(body, _arguments(body)), parse_image_size(img_size)
    own_size = preprocessing_of(body, args, None)["input_size"][1:]
    if size is not None and size != own_size and has_fixed_size(body, args):
        _resize(body, size)
        args["img_size"] = size
    return Backbone(body, args, level=level, out_index=out_index, image_size=size)


def check_model_name(model_name: str) -> None:
    """Refuse what timm itself has no architecture for; a name with a source ("hf-hub:...") is left to timm.

    Raises:
        BackboneError: unknown name (close matches are listed), or none.
    """
    if not isinstance(model_name, str):
        raise BackboneError(f"expected a model name or a model built by timm, got {model_name!r:.80}")
    if ":" in model_name or _is_timms_own(get_arch_name(model_name)):
        return
    known = [name for name in list_models() if _is_timms_own(name)]
    close = difflib.get_close_matches(get_arch_name(model_name), known, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all"
    raise BackboneError(f"expected a model name that timm {timm.__version__} knows, got {model_name!r}; {hint}")


def _is_timms_own(name: str) -> bool:
    # Entry points that timm_compat registers take folders: no backbone is to be built from those.
    return is_model(name) and not model_entrypoint(name).__module__.startswith("timm_compat.")


def _check_channels(channels: object) -> None:
    if channels is None:
        return
    if isinstance(channels, bool) or not isinstance(channels, int) or not 0 < channels <= MAX_CHANNELS:
        raise ConfigError(f"in_chans: expected an integer from 1 to {MAX_CHANNELS}, got {channels!r}")


def _arguments(model: nn.Module) -> dict[str, Any]:
    # timm notes with a model what it was built with; a Hub repository brings arguments of its own.
    args = getattr(model, "_model_args", {})
    return {key: value for key, value in args.items() if key not in RESERVED_ARGUMENTS and value is not None}


def _resize(model: Any, size: tuple[int, int]) -> None:
    name = model.pretrained_cfg["architecture"]
    if not hasattr(model, "set_input_size"):
        raise BackboneError(f"{name}: timm cannot change this model's image size; build it by name with img_size=")
    try:
        model.set_input_size(img_size=size)
    except TIMM_ERRORS as error:
        raise BackboneError(
            f"{name}: expected an image size that it can take, got {size_text(size)} ({error})"
        ) from error


def _default_is_fixed(model_name: str) -> bool:
    if ":" in model_name:
        with torch.device("meta"):
            built: Any = timm.create_model(model_name, num_classes=0)
            return bool(built.pretrained_cfg.get("fixed_input_size"))
    config = timm.models.get_pretrained_cfg(model_name, allow_unregistered=True)
    return bool(config is None or config.fixed_input_size)

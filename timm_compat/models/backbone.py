"""A timm model of any architecture as a source of features: pooled (B, F), or a map (B, F, H', W') of one stage.

The backbone is asked, never guessed at by its name: it stands without classifier, timm itself tells the number of
its features, and its weights stay a plain timm checkpoint.
"""

import copy
import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_arch_name, is_model, list_models, model_entrypoint
from torch import Tensor, nn

from timm_compat.errors import BackboneError, ConfigError, ImageError

# Arguments of timm.create_model that are set here, or that name files and places.
RESERVED_ARGUMENTS = frozenset(
    {
        *("cache_dir", "checkpoint_path", "features_only", "level", "model_name", "num_classes", "out_index"),
        *("out_indices", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args"),
    }
)
# What timm raises for arguments that an architecture does not take, and for images that it cannot take.
TIMM_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
DOWNLOAD_ERRORS = (OSError,)
MAX_IMAGE_SIDE = 16_384
MAX_CHANNELS = 1_024


class Backbone(nn.Module):
    """A timm model without classifier whose features come in one shape.

    Args:
        model: a timm model without classifier; not copied.
        model_args: timm's arguments that rebuild it.
        level: "pooled" or "map".
        out_index: at level "map" the stage to read, an index into timm's intermediate features (-1 is the last).
        image_size: (H, W) of the images it is used with; the model's own if None.

    Raises:
        BackboneError: the features of that level cannot be had; the message names the reason and the way out.
        BackboneError: it cannot take images of that size.
        ConfigError: ``out_index`` at level "pooled".
    """

    model: Any  # torch types a module's attributes as Tensor | Module; timm's are more than that

    def __init__(
        self,
        model: nn.Module,
        model_args: Mapping[str, Any] | None = None,
        *,
        level: str = "pooled",
        out_index: int = -1,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.architecture: str = self.model.pretrained_cfg["architecture"]
        self.model_args = dict(model_args or {})
        self.level = level
        self.fixed_size = _has_fixed_size(model, self.model_args)
        self.set_data_config(_data_config(model, self.model_args, image_size))
        self.out_index: int | None = None
        if level == "map":
            self.out_index = _stage(self.architecture, model, out_index)
            self.num_features = int(self.model.feature_info[self.out_index]["num_chs"])
            _freeze_unused(self, self.out_index)
        elif out_index != -1:
            raise ConfigError(f'out_index: expected none for a space of level "pooled", got {out_index!r}; drop it')
        else:
            self.num_features = int(self.model.head_hidden_size)
        if self.model_args or image_size:
            self.num_features = self._probe()

    def set_data_config(self, data_config: Mapping[str, Any]) -> None:
        """Set the preprocessing: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode."""
        self.data_config = dict(data_config)
        self.input_size: tuple[int, int, int] = self.data_config["input_size"]

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images.

        Args:
            images: (B, C, H, W), floating point.

        Returns:
            (B, F) at level "pooled", (B, F, H', W') at level "map".

        Raises:
            ImageError: images of the wrong rank, channels, size or dtype.
        """
        self._check(images)
        try:
            return self._features(images)
        except torch.OutOfMemoryError:
            raise
        except TIMM_ERRORS as error:
            expected = next(self.model.parameters()).dtype
            if images.dtype != expected and not torch.is_autocast_enabled(images.device.type):
                raise ImageError(f"images: expected {expected} as the weights are, got {images.dtype}") from error
            if tuple(images.shape[-2:]) == self.input_size[1:]:
                raise
            raise ImageError(
                f"images: {self.architecture} cannot take {_size(images.shape[-2:])} pixels ({error}); "
                f"it was set up for {_size(self.input_size[1:])}: resize, or create it with img_size="
            ) from error

    def _features(self, images: Tensor) -> Tensor:
        if self.out_index is not None:
            stages = self.model.forward_intermediates(
                images, indices=[self.out_index], stop_early=True, output_fmt="NCHW", intermediates_only=True
            )
            return stages[-1]
        features: Tensor = self.model(images)
        # The encoders without classifier return their tokens (B, N, F) or their last map (B, F, H', W').
        if features.ndim == 3:
            return features.mean(dim=1)
        return features.mean(dim=(2, 3)) if features.ndim == 4 else features

    def _probe(self) -> int:
        # The features that come for images of the size that was asked for: shapes only, on a copy without weights.
        weights = [*self.parameters(), *self.buffers()]
        device = weights[0].device
        memo: dict[int, Any] = {id(tensor): tensor.detach().to("meta") for tensor in weights}
        try:
            return self._count_features(copy.deepcopy(self, memo), torch.device("meta"))
        except TIMM_ERRORS:
            if device.type == "meta":
                return self.num_features
        try:  # some architectures look at values
            return self._count_features(copy.deepcopy(self), device)
        except TIMM_ERRORS as error:
            raise BackboneError(
                f"{self.architecture}: cannot take {_size(self.input_size[1:])} pixels with "
                f"{self.model_args or 'its defaults'} ({error}); choose another img_size, or leave it out"
            ) from error

    @torch.no_grad()
    def _count_features(self, backbone: nn.Module, device: torch.device) -> int:
        features: Tensor = backbone.eval()(torch.zeros(2, *self.input_size, device=device))
        return features.shape[1]

    def _check(self, images: Tensor) -> None:
        channels, *size = self.input_size
        if not isinstance(images, Tensor):
            raise ImageError(f"images: expected a tensor, got {type(images).__name__}; see torch.as_tensor")
        if images.ndim != 4 or images.shape[1] != channels:
            raise ImageError(f"images: expected shape (B, {channels}, H, W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ImageError(
                f"images: expected normalised floating point, got {images.dtype}; "
                "pass raw images through the extractor's preprocess() first"
            )
        if self.fixed_size and list(images.shape[-2:]) != size:
            raise ImageError(
                f"images: {self.architecture} takes {_size(size)} pixels only, got {_size(images.shape[-2:])}; "
                "resize, or create it with img_size="
            )


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
    reserved = sorted(RESERVED_ARGUMENTS & timm_kwargs.keys())
    if reserved:
        raise ConfigError(f"{reserved[0]}: expected timm's model arguments, but this one is set by timm_compat itself")
    _check_name(model_name)
    _check_channels(timm_kwargs.get("in_chans"))
    size = _image_size(img_size)
    try:
        if size is not None and _default_is_fixed(model_name):
            timm_kwargs["img_size"] = size
        model = timm.create_model(model_name, pretrained=pretrained, num_classes=0, **timm_kwargs)
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
    return Backbone(model, _arguments(model, timm_kwargs), level=level, out_index=out_index, image_size=size)


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
    args, size = _arguments(body), _image_size(img_size)
    if size is not None and _has_fixed_size(body, args) and size != _data_config(body, args, None)["input_size"][1:]:
        _resize(body, size)
        args["img_size"] = size
    return Backbone(body, args, level=level, out_index=out_index, image_size=size)


def _check_name(model_name: str) -> None:
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
        raise ConfigError(f"in_chans: expected a whole number from 1 to {MAX_CHANNELS}, got {channels!r}")


def _arguments(model: nn.Module, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    # timm notes with a model what it was built with; a Hub repository brings arguments of its own.
    args = {**getattr(model, "_model_args", {}), **(given or {})}
    return {key: value for key, value in args.items() if key not in RESERVED_ARGUMENTS and value is not None}


def _resize(model: Any, size: tuple[int, int]) -> None:
    name = model.pretrained_cfg["architecture"]
    if not hasattr(model, "set_input_size"):
        raise BackboneError(f"{name}: timm cannot change this model's image size; build it by name with img_size=")
    try:
        model.set_input_size(img_size=size)
    except TIMM_ERRORS as error:
        raise BackboneError(f"{name}: expected an image size that it can take, got {_size(size)} ({error})") from error


def _default_is_fixed(model_name: str) -> bool:
    if ":" in model_name:
        with torch.device("meta"):
            built: Any = timm.create_model(model_name, num_classes=0)
            return bool(built.pretrained_cfg.get("fixed_input_size"))
    config = timm.models.get_pretrained_cfg(model_name, allow_unregistered=True)
    return bool(config is None or config.fixed_input_size)


def _has_fixed_size(model: Any, args: Mapping[str, Any]) -> bool:
    strict = getattr(getattr(model, "patch_embed", None), "strict_img_size", None)
    fixed = model.pretrained_cfg.get("fixed_input_size", False) if strict is None else strict
    return bool(fixed and not args.get("dynamic_img_size") and args.get("strict_img_size", True))


def _data_config(model: Any, args: Mapping[str, Any], image_size: tuple[int, int] | None) -> dict[str, Any]:
    source = model.pretrained_cfg.get("input_size") or (3, 224, 224)
    channels = int(args.get("in_chans") or getattr(model, "in_chans", None) or source[0])
    size = image_size or _image_size(args.get("img_size")) or tuple(source[1:])
    config = resolve_model_data_config(model)
    for key in ("mean", "std"):
        values = tuple(config[key])
        config[key] = values if len(values) == channels else (sum(values) / len(values),) * channels
    return {**config, "input_size": (channels, *size)}


def _stage(architecture: str, model: Any, out_index: int) -> int:
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "feature_info"):
        raise BackboneError(
            f"{architecture}: timm offers no intermediate features of it; use a space of level 'pooled'"
        )
    count = len(model.feature_info)
    if type(out_index) is not int or not -count <= out_index < count:
        raise BackboneError(f"{architecture}: out_index: expected {-count} to {count - 1}, got {out_index!r}")
    return out_index % count


def _freeze_unused(backbone: Backbone, stage: int) -> None:
    # What lies behind the stage keeps its place in the checkpoint, but is not trained.
    try:
        used = _with_gradient(backbone)
    except TIMM_ERRORS:  # meta tensors have no values, and some architectures look at them
        used = _left_by_pruning(backbone.model, stage)
    for parameter in backbone.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)


def _with_gradient(backbone: Backbone) -> set[int]:
    meta: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in backbone.buffers()}
    leaves = {id(parameter): nn.Parameter(parameter.detach().to("meta")) for parameter in backbone.parameters()}
    copied = copy.deepcopy(backbone, meta | leaves).eval()
    with torch.enable_grad():
        copied(torch.zeros(2, *backbone.input_size, device="meta")).sum().backward()
    return {key for key, leaf in leaves.items() if leaf.grad is not None}


def _left_by_pruning(model: Any, stage: int) -> set[int]:
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    pruned = copy.deepcopy(model, shared)
    pruned.prune_intermediate_layers([stage], prune_norm=True, prune_head=True)
    return {id(parameter) for parameter in pruned.parameters()}


def _image_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= MAX_IMAGE_SIDE for side in pair):
        raise ConfigError(
            f"img_size: expected a whole number from 1 to {MAX_IMAGE_SIDE}, or (height, width), got {size!r}"
        )
    return pair[0], pair[1]


def _size(size: Any) -> str:
    return " x ".join(str(int(side)) for side in size)

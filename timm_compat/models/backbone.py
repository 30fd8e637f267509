"""A timm model of any architecture as a source of features: pooled (B, F), or a map (B, F, H', W') of one stage.

Everything is asked of the model, nothing is guessed from its name: it has no classifier, timm itself tells the number
of its features, and its weights stay a plain timm checkpoint.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from timm_compat.errors import BackboneError, ConfigError, ImageError
from timm_compat.models.interface import as_weights, autocast_is_on

# What timm raises for arguments that an architecture does not take, and for images that it cannot take.
TIMM_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
MAX_IMAGE_SIDE = 4_096

# Features of registered architectures by name, arguments, image size and stage: counting them takes a forward pass.
_counted: dict[str, int] = {}


class Backbone(nn.Module):
    """A timm model without classifier whose features come in one shape.

    Args:
        model: a timm model without classifier; not copied.
        model_args: timm's arguments that rebuild it.
        level: "pooled" or "map".
        out_index: at level "map" the stage to read, an index into timm's intermediate features (-1 is the last).
        image_size: (H, W) of the images it is used with; the model's own if None.
        as_registered: the model is as timm builds it from its name and ``model_args``, so that the number of features
            found for another such model holds.

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
        as_registered: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.architecture: str = self.model.pretrained_cfg["architecture"]
        self.model_args = dict(model_args or {})
        self.level = level
        self.fixed_size = has_fixed_size(model, self.model_args)
        self.set_data_config(preprocessing_of(model, self.model_args, image_size))
        self.out_index: int | None = None
        if level == "map":
            self.out_index = _stage(self.architecture, model, out_index)
            self.num_features = int(self.model.feature_info[self.out_index]["num_chs"])
            _freeze_unused(self, self.out_index)
        elif out_index != -1:
            raise ConfigError(f'out_index: expected none for a space of level "pooled", got {out_index!r}; drop it')
        else:
            self.num_features = int(self.model.head_hidden_size)
        if not as_registered:
            self.num_features = self._probe()
        elif self.model_args or image_size:
            self.num_features = self._known()

    def set_data_config(self, data_config: Mapping[str, Any]) -> None:
        """Set the preprocessing: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode."""
        self.data_config = dict(data_config)
        self.input_size: tuple[int, int, int] = self.data_config["input_size"]

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images.

        Args:
            images: (B, C, H, W), floating point; float32, or as the weights are.

        Returns:
            (B, F) at level "pooled", (B, F, H', W') at level "map".

        Raises:
            ImageError: images of the wrong rank, channels, size or dtype.
        """
        self._check(images)
        if images.dtype == torch.float32:  # as preprocess() gives them, whatever the weights' type
            images = as_weights(images, next(self.model.parameters()))
        try:
            return self._features(images)
        except torch.OutOfMemoryError:
            raise
        except TIMM_ERRORS as error:
            expected = next(self.model.parameters()).dtype
            if images.dtype != expected and not autocast_is_on(images):
                raise ImageError(f"images: expected {expected} as the weights are, got {images.dtype}") from error
            if tuple(images.shape[-2:]) == self.input_size[1:]:
                raise
            raise ImageError(
                f"images: {self.architecture} cannot take {size_text(images.shape[-2:])} pixels ({error}); "
                f"it was set up for {size_text(self.input_size[1:])}: resize, or create it with img_size="
            ) from error

    def _features(self, images: Tensor) -> Tensor:
        return features_of(self.model, images, self.out_index)

    def _known(self) -> int:
        key = repr((self.architecture, sorted(self.model_args.items()), self.input_size, self.out_index))
        if key not in _counted:
            _counted[key] = self._probe()
        return _counted[key]

    def _probe(self) -> int:
        # The features that come for images of the size that was asked for: shapes only, on a copy without weights.
        weights = [*self.parameters(), *self.buffers()]
        device = weights[0].device
        memo: dict[int, Any] = {id(tensor): tensor.detach().to("meta") for tensor in weights}
        try:
            return self._count_features(copy.deepcopy(self, memo), torch.device("meta"))
        except BackboneError:
            raise
        except TIMM_ERRORS:
            if device.type == "meta":
                return self.num_features
        try:  # some architectures look at values
            return self._count_features(copy.deepcopy(self), device)
        except BackboneError:
            raise
        except TIMM_ERRORS as error:
            raise BackboneError(
                f"{self.architecture}: cannot take {size_text(self.input_size[1:])} pixels with "
                f"{self.model_args or 'its defaults'} ({error}); choose another img_size, or leave it out"
            ) from error

    @torch.no_grad()
    def _count_features(self, backbone: "Backbone", device: torch.device) -> int:
        dtype = next(backbone.parameters()).dtype
        features = backbone.eval()._features(torch.zeros(2, *self.input_size, device=device, dtype=dtype))
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
                f"images: {self.architecture} takes {size_text(size)} pixels only, got {size_text(images.shape[-2:])}; "
                "resize, or create it with img_size="
            )


def has_fixed_size(model: Any, args: Mapping[str, Any]) -> bool:
    """Whether a model takes images of one size only."""
    strict = getattr(getattr(model, "patch_embed", None), "strict_img_size", None)
    fixed = model.pretrained_cfg.get("fixed_input_size", False) if strict is None else strict
    return bool(fixed and not args.get("dynamic_img_size") and args.get("strict_img_size", True))


def preprocessing_of(model: Any, args: Mapping[str, Any], image_size: tuple[int, int] | None) -> dict[str, Any]:
    """timm's six settings for a model: its own, at the image size and channels that it is used with."""
    source = model.pretrained_cfg.get("input_size") or (3, 224, 224)
    channels = int(args.get("in_chans") or getattr(model, "in_chans", None) or source[0])
    size = image_size or parse_image_size(args.get("img_size")) or tuple(source[1:])
    config = resolve_model_data_config(model)
    for key in ("mean", "std"):
        values = tuple(config[key])
        config[key] = values if len(values) == channels else (sum(values) / len(values),) * channels
    return {**config, "input_size": (channels, *size)}


def features_of(model: Any, images: Tensor, out_index: int | None) -> Tensor:
    """A model's pooled features (B, F), or the map (B, F, H', W') of one stage.

    Raises:
        BackboneError: see ``pooled``.
    """
    if out_index is None:
        return pooled(model, model(images))
    stages = model.forward_intermediates(
        images, indices=[out_index], stop_early=True, output_fmt="NCHW", intermediates_only=True
    )
    return stages[-1]


def pooled(model: Any, features: Any) -> Tensor:
    """What a model without classifier returns, pooled where timm did not: ``global_pool=""``, or an encoder.

    Args:
        model: tells the layout of its features: ``output_fmt``, ``num_prefix_tokens``, ``head_hidden_size``.
        features: (B, F), tokens (B, N, F), or a map (B, F, H', W') or (B, H', W', F).

    Returns:
        (B, F): the mean over positions as timm's "avg" takes it, without class and register tokens.

    Raises:
        BackboneError: features of another form.
    """
    dim = getattr(features, "ndim", None)
    if dim == 2:
        return features
    is_last = dim == 3 or getattr(model, "output_fmt", "NCHW") == "NHWC"
    if dim not in (3, 4) or features.shape[-1 if is_last else 1] != model.head_hidden_size:
        form = tuple(features.shape) if dim is not None else type(features).__name__
        raise BackboneError(
            f"{model.pretrained_cfg['architecture']}: expected {model.head_hidden_size} features of each image or "
            f"place, got {form}; leave global_pool to timm"
        )
    if dim == 3:
        return features[:, getattr(model, "num_prefix_tokens", None) or 0 :].mean(dim=1)
    return features.mean(dim=(1, 2) if is_last else (2, 3))


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
        used = _in_graph(backbone)
    except TIMM_ERRORS:  # meta tensors have no values, and some architectures look at them
        used = _left_by_pruning(backbone.model, stage)
    for parameter in backbone.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)


def _in_graph(backbone: Backbone) -> set[int]:
    # Walking autograd's graph tells what a backward pass would reach, in a fraction of its time.
    meta: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in backbone.buffers()}
    leaves = {id(parameter): nn.Parameter(parameter.detach().to("meta")) for parameter in backbone.parameters()}
    copied = copy.deepcopy(backbone, meta | leaves).eval()
    with torch.enable_grad():
        output = copied(torch.zeros(2, *backbone.input_size, device="meta"))
    reached, seen, waiting = set(), set(), [output.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(id(getattr(node, "variable", None)))
        waiting += [following for following, _ in node.next_functions]
    return {key for key, leaf in leaves.items() if id(leaf) in reached}


def _left_by_pruning(model: Any, stage: int) -> set[int]:
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    pruned = copy.deepcopy(model, shared)
    pruned.prune_intermediate_layers([stage], prune_norm=True, prune_head=True)
    return {id(parameter) for parameter in pruned.parameters()}


def parse_image_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(H, W) of a user's ``img_size``.

    Raises:
        ConfigError: something else than one or two positive integers.
    """
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= MAX_IMAGE_SIDE for side in pair):
        raise ConfigError(f"img_size: expected an integer from 1 to {MAX_IMAGE_SIDE}, or (height, width), got {size!r}")
    return pair[0], pair[1]


def size_text(size: Any) -> str:
    """(H, W) as ``H x W``, for messages."""
    return " x ".join(str(int(side)) for side in size)

"""A trained timm classifier taken apart: a backbone, and the linear map from its features to the logits."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.errors import BackboneError, ConfigError
from timm_compat.imagenet import imagenet_names
from timm_compat.models.backbone import TIMM_ERRORS, Backbone, parse_image_size
from timm_compat.models.backbone_build import adopt_backbone, build_model
from timm_compat.models.evaluating import evaluating
from timm_compat.models.unwrapping import unwrapped
from timm_compat.models.weights import count_classes, load_classifier
from timm_compat.vocabulary import check_class_names

TOLERANCE = 1e-4  # of the largest logit
CHECKED_IMAGES = 2
WAY_OUT = "it can join a space as a backbone, but not be split"


@dataclass(frozen=True)
class Classifier:
    """logits = weight @ features + bias.

    Attributes:
        backbone: the model without its classifier, in evaluation mode.
        weight: (K, F), float64.
        bias: (K,), float64.
        class_names: K names in the order of the logits; None where nobody knows them.
    """

    backbone: Backbone
    weight: Tensor
    bias: Tensor
    class_names: tuple[str, ...] | None


def open_classifier(
    model: str | nn.Module,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    class_names: Iterable[str] | None = None,
    img_size: int | tuple[int, int] | None = None,
    **timm_kwargs: Any,
) -> Classifier:
    """Take a trained classifier apart, by its name or as it is.

    Args:
        model: a name for ``timm.create_model``, or a model that timm built (copied).
        pretrained: whether to load timm's weights (by name only).
        weights: a safetensors file of the plain timm model with its classifier (by name only).
        class_names: K names in the order of the logits. If None, those that come with the model, or ImageNet's where
            its number of classes is that of the ImageNet subset that timm knows it for.
        img_size: H = W, or (H, W), of the images; the model's own if None.
        **timm_kwargs: timm's own keywords, such as ``in_chans`` (by name only).

    Raises:
        BackboneError: the model cannot be built, has no classifier, or one that is no linear map of its features.
        ConfigError: arguments that do not fit together, or names of another number.
    """
    names = None if class_names is None else check_class_names(class_names)
    size, model = parse_image_size(img_size), unwrapped(model)
    if isinstance(model, nn.Module):
        if pretrained or weights is not None or timm_kwargs:
            raise ConfigError("pretrained, weights and timm's keywords build a model; this one is built: drop them")
        whole: Any = model
    else:
        if pretrained and weights is not None:
            raise ConfigError("pretrained and weights: expected one of them, got both")
        whole = _built(model, pretrained, weights, names, size, timm_kwargs)
    return take_apart(whole, names, img_size=size)


@torch.no_grad()
def take_apart(
    model: Any, class_names: tuple[str, ...] | None = None, *, img_size: tuple[int, int] | None = None
) -> Classifier:
    """The parts of a timm model; that they give its logits is checked on random images.

    Raises:
        BackboneError: it has no classifier, or one that is no linear map of its features.
        ConfigError: names of another number.
    """
    backbone = _adopted(model, img_size)
    checked = _adopted(model, None) if img_size and backbone.fixed_size else backbone
    heads, name = list(_dropped(model, backbone.model)), backbone.architecture
    if not heads:
        raise BackboneError(f"{name}: expected a model with a classifier, got one without; {WAY_OUT}")
    parts = _combined(heads, backbone)
    if parts is None or not _difference(model, checked, *parts) <= TOLERANCE:
        raise BackboneError(f"{name}: {_reason(heads, parts is None)}; {WAY_OUT}")
    weight, bias = parts
    if class_names is not None and len(class_names) != len(bias):
        raise ConfigError(f"class_names: expected the {len(bias)} names of {name}'s classes, got {len(class_names)}")
    return Classifier(backbone, weight, bias, class_names or known_names(model, len(bias)))


def _adopted(model: Any, img_size: tuple[int, int] | None) -> Backbone:
    backbone: Backbone = adopt_backbone(model, img_size=img_size).float().eval()
    return backbone


def known_names(model: Any, num_classes: int) -> tuple[str, ...] | None:
    """The class names that come with a timm model, or those of the ImageNet subset that it was trained on."""
    config: Mapping[str, Any] = model.pretrained_cfg
    labels = config.get("label_names")
    if isinstance(labels, Mapping):  # by number, and JSON makes strings of these
        numbered = {int(number): name for number, name in labels.items()}
        labels = [numbered[number] for number in sorted(numbered)]
    if labels and len(labels) == num_classes == len(set(labels)):
        return tuple(map(str, labels))
    return imagenet_names(num_classes) if config.get("num_classes") == num_classes else None


def _built(
    model_name: str,
    pretrained: bool,
    weights: str | Path | None,
    names: tuple[str, ...] | None,
    size: tuple[int, int] | None,
    timm_kwargs: dict[str, Any],
) -> Any:
    if weights is not None:
        with torch.device("meta"):
            count: int | None = count_classes(build_model(model_name, img_size=size, **timm_kwargs), weights)
    else:
        count = None if pretrained or names is None else len(names)
    model = build_model(model_name, count, pretrained=pretrained, img_size=size, **timm_kwargs)
    if weights is not None:
        load_classifier(model, weights)
    return model


def _dropped(model: nn.Module, bare: nn.Module) -> Iterator[nn.Module]:
    """What timm drops from a model where it removes the classifier: one module, or several."""
    for name, module in model.named_children():
        left = getattr(bare, name, None)
        if type(left) is type(module):
            yield from _dropped(module, left)
        elif any(True for _ in module.parameters()):
            yield module


def _reason(heads: list[Any], is_other: bool) -> str:
    if is_other:
        return (
            f"expected a classifier that is one linear map of the features, got {type(heads[0]).__name__}, of which "
            "timm drops a norm or a hidden layer too where it builds a model without classifier"
        )
    if len(heads) > 1:
        return (
            f"expected one classifier on the pooled features, got {len(heads)}, whose logits timm combines and which "
            "read features of their own"
        )
    return "expected logits that are a linear map of the pooled features, but timm computes more in between"


def _affine(head: Any, num_features: int) -> tuple[Tensor, Tensor] | None:
    """Weight (K, F) and bias (K,) of a classifier that is one linear map in evaluation; None of any other."""
    if isinstance(head, (nn.Linear, nn.Conv2d)):
        weight = head.weight.double().flatten(1)
        return weight, torch.zeros_like(weight[:, 0]) if head.bias is None else head.bias.double()
    # A norm before the linear layer, or two of them averaged: what becomes of the axes says what it is.
    asked = copy.deepcopy(head).double().eval()
    sides = (1, 1) if any(isinstance(layer, nn.Conv2d) for layer in head.modules()) else ()
    draw = torch.randn(num_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = torch.cat([torch.zeros(1, num_features), torch.eye(num_features), draw[None]])
    try:
        answers: Tensor = asked(points.to(next(asked.parameters())).reshape(*points.shape, *sides)).flatten(1)
    except TIMM_ERRORS:
        return None
    bias, weight = answers[0], (answers[1:-1] - answers[0]).T
    error = weight @ draw.to(bias) + bias - answers[-1]
    return (weight, bias) if _largest(error) <= TOLERANCE * _largest(answers[-1]) else None


def _combined(heads: list[Any], backbone: Backbone) -> tuple[Tensor, Tensor] | None:
    maps = [_affine(head, backbone.num_features) for head in heads]
    known = [parts for parts in maps if parts is not None]
    weights, biases = zip(*known, strict=True) if len(known) == len(maps) else ((), ())
    widths = [weight.shape[1] for weight in weights]
    if all(width == backbone.num_features for width in widths) and widths:
        weight = torch.stack(weights).mean(dim=0)
    elif sum(widths) == backbone.num_features:  # each reads a token of its own, and they stand side by side
        weight = torch.cat(weights, dim=1) / len(weights)
    else:
        return None
    return weight, torch.stack(biases).mean(dim=0)


def _difference(model: Any, backbone: Backbone, weight: Tensor, bias: Tensor) -> float:
    """Largest difference of the parts' logits on random images, in units of the largest logit."""
    whole = model if _is_float(model) else copy.deepcopy(model).float()
    shape = (CHECKED_IMAGES, *backbone.input_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(bias.device)
    with evaluating(whole):
        own = whole(images)
    other = backbone(images).double() @ weight.T + bias
    return _largest(own - other) / max(_largest(own), torch.finfo(torch.float32).tiny)


def _is_float(model: nn.Module) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in model.parameters())


def _largest(values: Tensor) -> float:
    return float(values.abs().max())

"""Split: a trained timm classifier becomes an extractor and a head of a space of its own, exactly."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.data.raw_batches import RawImages
from timm_compat.errors import ConfigError
from timm_compat.models.classifier import open_classifier
from timm_compat.models.extractor import CompatExtractor, origin_facts
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import passes
from timm_compat.models.run_options import RunOptions
from timm_compat.models.typical import typical_mean
from timm_compat.processes import summed
from timm_compat.space import CompatSpace
from timm_compat.storage.facts import Facts


@torch.no_grad()
def split(
    model: str | nn.Module,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    class_names: Iterable[str] | None = None,
    images: RawImages | None = None,
    img_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    amp: str | None = None,
    workers: int = 0,
    progress: bool | None = None,
    **timm_kwargs: Any,
) -> tuple[CompatExtractor, TaskHead]:
    """Take a trained timm classifier apart; ``compose(extractor, head)`` gives exactly its logits.

    The space is new and final: its features are what the classifier's last linear layer reads, its common-classes head
    is that layer, its reference is the extractor. Other networks join it through the classes in common.

    Args:
        model: a name for ``timm.create_model``, or a model that timm built (copied).
        pretrained: whether to load timm's weights (by name only).
        weights: a safetensors file of the plain timm model with its classifier (by name only).
        class_names: K names in the order of the logits. If None, those that come with the model, or ImageNet's
            WordNet ids if it was trained on ImageNet.
        images: raw images (see ``extract_features``): features are then standardised to mean 0 and variance 1 over
            them (those that hardly vary to less), which the head undoes; a join can then tell how far its images are
            from these.
        img_size: H = W, or (H, W), of the images; the model's own if None.
        device: of the pass over the images, like the following (see ``RunOptions``).
        batch_size: images at a time.
        amp: precision.
        workers: processes that decode image files.
        progress: whether to show a bar.
        **timm_kwargs: timm's own keywords, such as ``in_chans`` (by name only).

    Returns:
        The extractor, ``trainable="adapter"``, and the head, both in evaluation mode; ``extractor.space`` is the space.

    Raises:
        BackboneError: the model cannot be built, has no classifier, or its logits are no linear map of the features
            that timm gives without classifier; the message says why.
        ConfigError: unknown class names, or a wrong number of them; arguments that contradict each other.
        DataError: no image, or one that cannot be decoded.

    Example:
        >>> model = timm.create_model("test_resnet", num_classes=3)
        >>> extractor, head = tc.split(model, class_names=["cat", "dog", "owl"])
        >>> images = torch.randn(2, 3, 160, 160)
        >>> torch.allclose(tc.compose(extractor, head)(images), model.eval()(images), atol=1e-4)
        True
    """
    options = RunOptions(device, batch_size, amp, workers, progress)
    parts = open_classifier(
        model, pretrained=pretrained, weights=weights, class_names=class_names, img_size=img_size, **timm_kwargs
    )
    backbone = parts.backbone
    if parts.class_names is None:
        raise ConfigError(
            f"class_names: expected the names of {backbone.architecture}'s {len(parts.bias)} classes, which neither "
            "the model nor timm tells; give class_names=[...] in the order of its logits (on the command line "
            "--class-names FILE: one name per line, or a JSON list)"
        )
    space = CompatSpace(backbone.num_features, parts.class_names, ["common_classes"])
    extractor = CompatExtractor(backbone, space, trainable="adapter").to(parts.bias.device).eval()
    extractor.interface.set_linear(torch.eye(space.feature_dim), torch.zeros(space.feature_dim))
    if images is not None:
        _standardize(extractor, images, options)
    elif (mean := typical_mean(backbone)) is not None:
        extractor.interface.normalization.running_mean.copy_(mean)
    weight, bias = _on_features(extractor, parts.weight, parts.bias)
    head = TaskHead(space, space.class_names).to(bias.device)
    head.classifier.weight.copy_(weight)
    head.classifier.bias.copy_(bias)
    shared = {f"common_classes.{name}": tensor for name, tensor in head.classifier.state_dict().items()}
    space.finalize(shared, reference=extractor.digest())
    origin = origin_facts(backbone.model.pretrained_cfg.get("hf_hub_id")) if pretrained else Facts()
    for part in (space, extractor, head):
        part.facts = replace(origin, training={"method": "split", "architecture": backbone.architecture})
    return extractor, head.eval()


def _standardize(extractor: CompatExtractor, images: RawImages, options: RunOptions) -> None:
    size = extractor.backbone.num_features
    # Count, sums and sums of squares in one, so that processes that share the images add them up at once.
    sums = torch.zeros(2 * size + 1, dtype=torch.float64)
    for passed in passes([extractor], images, pooled=[0], options=options, description="split"):
        features = passed.outputs[0].cpu().double()
        sums[0] += len(features)
        sums[1 : size + 1] += features.sum(dim=0)
        sums[size + 1 :] += features.square().sum(dim=0)
    sums = summed(sums)
    mean, square = (sums[1:] / sums[0]).split(size)
    extractor.interface.standardize(mean, (square - mean.square()).clamp(min=0))


def _on_features(extractor: CompatExtractor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The map from pooled features as one from the space's, which are the same up to scale and shift."""
    folded = extractor.interface.folded()
    assert folded is not None
    scale, shift = folded[0].diagonal(), folded[1]
    return weight / scale, bias - weight @ (shift / scale)

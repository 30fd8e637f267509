"""Join: a frozen backbone becomes an extractor of an existing space, by classes in common and unlabelled images."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.data.raw_batches import RawImages
from timm_compat.errors import BackboneError, ConfigError, DataError
from timm_compat.evaluation.scores import linear_cka
from timm_compat.joining.closed_form import ALONE, Centre, ClosedForm
from timm_compat.joining.evidence import HELD_OUT_EVERY, HeldOut, ImageEvidence, class_rows, has_own_classes
from timm_compat.joining.report import (
    SURE_AGREEMENT,
    Agreement,
    JoinReport,
    agreement,
    divergence,
    explained,
    name_of,
    warn_where_poor,
)
from timm_compat.methods.ridge import Moments
from timm_compat.models.classifier import Classifier, open_classifier
from timm_compat.models.extractor import CompatExtractor, create_extractor, origin_facts
from timm_compat.models.heads import CommonClassesHead, TaskHead
from timm_compat.models.interface import Interface
from timm_compat.models.passes import Passed, passes
from timm_compat.models.run_options import RunOptions, home_of
from timm_compat.models.typical import typical_mean
from timm_compat.models.unwrapping import unwrapped
from timm_compat.models.weights import load_weights
from timm_compat.space import CompatSpace

LEAST_IMAGES = 2 * HELD_OUT_EVERY
OWN_CLASSES = "the space's common classes"


# The pooled features of a new network, and those of a reference, batch by batch.
Look = Callable[[CompatExtractor, CompatExtractor, Any], Iterable[Passed]]


def join(
    space: CompatSpace,
    model: str | nn.Module,
    images: RawImages | None = None,
    *,
    reference: CompatExtractor | None = None,
    heads: Sequence[TaskHead] = (),
    pretrained: bool = False,
    weights: str | Path | None = None,
    class_names: Iterable[str] | None = None,
    classes: bool = True,
    img_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    amp: str | None = None,
    workers: int = 0,
    progress: bool | None = None,
    **timm_kwargs: Any,
) -> CompatExtractor:
    """Make a frozen backbone compatible with a space: its interface becomes a linear map, found in closed form.

    No label is looked at. The map rests on the classes that the network's own classifier and the space have in common,
    on images that the network and a reference extractor both see, or on both (``joining/closed_form.py``). All heads of
    the space then run on the result, those too whose images were not among these. One pass, in memory that does not
    grow with the images.

    Args:
        space: a level "pooled" space; one that was loaded itself, rather than with an extractor, brings its classes.
        model: a name for ``timm.create_model``, or a model that timm built (copied), with its classifier where classes
            are to count. An untrained classifier says nothing: give such a model without one.
        images: raw images (see ``extract_features``), at least 10; labels are not looked at. None to join through the
            classes alone. Those of the heads' own kind serve best.
        reference: an extractor of the space; needed with images.
        heads: heads of the space whose agreement the report is to tell. Where the space's own classes are not at hand,
            theirs count as such.
        pretrained: whether to load timm's weights (by name only).
        weights: a safetensors file of the plain timm model (by name only).
        class_names: names of the network's own classes, where timm does not know them.
        classes: whether the classes in common count; without, images alone do. They serve all heads, but can mislead
            where the images are of another world than those that the classifiers learned from, such as sketches.
        img_size: H = W, or (H, W), of the backbone's images; its own if None.
        device: where the networks run; see ``RunOptions``, as for the next four.
        batch_size: images at a time.
        amp: "bf16" or "fp16".
        workers: processes that decode image files.
        progress: whether to show a bar.
        **timm_kwargs: timm's own keywords, such as ``in_chans`` (by name only).

    Returns:
        An extractor in evaluation mode, ``trainable="adapter"``, with ``fit_report`` set.

    Raises:
        BackboneError: the backbone cannot be built.
        ConfigError: a space of level "map", images without a reference, or neither images nor classes in common.
        DataError: fewer than 10 images, or one that cannot be decoded.
        SpaceMismatchError: the reference or a head lives in another space.

    Example:
        >>> names = ["cat", "dog", "owl"]
        >>> old, new = (timm.create_model(name, num_classes=3) for name in ("test_resnet", "test_efficientnet"))
        >>> extractor, head = tc.split(old, class_names=names)
        >>> joined = tc.join(extractor.space, new, class_names=names)
        >>> joined.fit_report.rests_on
        '3 classes in common'
        >>> tc.compose(joined, head)(torch.zeros(2, 3, 160, 160)).shape
        torch.Size([2, 3])
    """
    options = RunOptions(device, batch_size, amp, workers, progress)

    def look(extractor: CompatExtractor, other: CompatExtractor, images: RawImages) -> Iterable[Passed]:
        return passes([extractor, other], images, pooled=[0], options=options, description="join")

    return join_with(
        look, space, model, images, reference=reference, heads=heads, pretrained=pretrained, weights=weights,
        class_names=class_names, classes=classes, img_size=img_size, stacklevel=5, **timm_kwargs,
    )  # fmt: skip


@torch.no_grad()
def join_with(
    look: Look,
    space: CompatSpace,
    model: str | nn.Module,
    images: RawImages | None,
    *,
    reference: CompatExtractor | None,
    heads: Sequence[TaskHead],
    pretrained: bool = False,
    weights: str | Path | None = None,
    class_names: Iterable[str] | None = None,
    classes: bool = True,
    img_size: int | tuple[int, int] | None = None,
    stacklevel: int = 4,
    **timm_kwargs: Any,
) -> CompatExtractor:
    """``join`` with features from wherever they are: ``look`` gives those of the images."""
    start = time.perf_counter()
    reference = None if reference is None else unwrapped(reference)
    heads = [unwrapped(head) for head in heads]
    _check_space(space, images, reference, heads)
    classifier, extractor = _opened(
        space, model, pretrained=pretrained, weights=weights, class_names=class_names, img_size=img_size, **timm_kwargs
    )
    if images is None and not classes:
        raise ConfigError("join: expected images, as nothing else is left with classes=False, got none")
    rows, num_classes = class_rows(classifier, space, heads) if classes else (None, 0)
    if images is None and rows is None:
        raise _nothing_to_rest_on(extractor.architecture, space, classifier)
    centre = _centre(extractor, reference)
    interface = extractor.interface
    if images is None:
        interface.set_linear(*ClosedForm(None, rows, centre).map())
        report = JoinReport(num_classes, 0, {}, None, None, None, time.perf_counter() - start)
    else:
        assert reference is not None
        if home_of(extractor).type == "cpu":
            extractor.to(home_of(reference))
        fitted, held_out, features = _seen(extractor, reference, look(extractor, reference, images))
        known, trial = _known_heads(space, heads), ClosedForm(fitted, rows, centre)
        strength = ALONE[0] if rows is not None else _chosen(interface, trial, features, known)
        measured = _measured(_with_map(interface, trial.map(strength)), features, known)
        given = {name: head for name, head in known.items() if name != OWN_CLASSES}
        unsure = rows is not None and any(measured[0][name].share < SURE_AGREEMENT for name in given)
        alone = _without_classes(interface, ClosedForm(fitted, None, centre), features, given) if unsure else {}
        everything = fitted.merged(held_out)
        interface.set_linear(*ClosedForm(everything, rows, centre).map(strength))
        shift = _shift(everything) if space.normalization == "batch" else None
        report = JoinReport(
            num_classes, everything.count, *measured, shift, time.perf_counter() - start, alone, classes
        )
    extractor.fit_report = report
    extractor.facts = replace(extractor.facts, training=_training_facts(report))
    warn_where_poor(extractor.architecture, report, stacklevel=stacklevel)  # torch.no_grad wraps this function
    return extractor


def _check_space(
    space: CompatSpace, images: RawImages | None, reference: CompatExtractor | None, heads: Sequence[TaskHead]
) -> None:
    if space.level != "pooled":
        raise ConfigError('join: expected a space of level "pooled", got level "map"; train the member instead')
    if images is not None and reference is None:
        raise ConfigError(
            "join: images need a reference, an extractor of the space that sees them too; give reference=..., or leave "
            "the images out to join through the classes in common"
        )
    if reference is not None:
        space.require_same(reference.space, "the space", "the reference extractor")
    for head in heads:
        space.require_same(head.space, "the space", f"the head over {', '.join(head.class_names[:3])}, ...")


def _opened(
    space: CompatSpace, model: str | nn.Module, *, pretrained: bool, weights: Any, class_names: Any, **arguments: Any
) -> tuple[Classifier | None, CompatExtractor]:
    """The model as an extractor whose interface is still to be fitted, and its own classifier where it has one."""
    is_trained = isinstance(model, nn.Module) or pretrained or weights is not None
    classifier = None
    if is_trained:
        given = {"pretrained": pretrained, "weights": weights, "class_names": class_names, **arguments}
        try:
            classifier = open_classifier(model, **given)
        except BackboneError:
            if class_names is not None:
                raise  # whoever names the classes wants them to count
    elif class_names is not None:
        raise ConfigError("class_names: expected a trained model whose classes these are; give pretrained or weights")
    if classifier is None:
        return None, _without_classifier(space, model, pretrained, weights, arguments)
    extractor = CompatExtractor(classifier.backbone, space, trainable="adapter")
    if pretrained:
        extractor.facts = origin_facts(classifier.backbone.model.pretrained_cfg.get("hf_hub_id"))
    return classifier, extractor.eval()


def _without_classifier(
    space: CompatSpace, model: str | nn.Module, pretrained: bool, weights: Any, arguments: dict[str, Any]
) -> CompatExtractor:
    extractor = create_extractor(model, space, pretrained=pretrained, trainable="adapter", **arguments)
    if weights is not None:
        load_weights(extractor.backbone, weights)
    return extractor.eval()


def _nothing_to_rest_on(name: str, space: CompatSpace, classifier: Classifier | None) -> ConfigError:
    if classifier is None:
        what = f"{name} has no trained classifier that is one linear map of its features"
    elif classifier.class_names is None:
        what = f"nobody knows the names of {name}'s {len(classifier.bias)} classes (class_names=[...] tells them)"
    elif not has_own_classes(space):
        what = "the space's common classes are not at hand (load the space itself: CompatSpace.from_pretrained)"
    else:
        own, other = (", ".join(names[:3]) for names in (classifier.class_names, space.class_names))
        what = f"{name} knows {own}, ..., the space {other}, ..."
    return ConfigError(
        f"join: expected images, or at least two classes in common; got no images, and {what}. "
        "Give images and a reference, or a model whose classes the space knows"
    )


def _centre(extractor: CompatExtractor, reference: CompatExtractor | None) -> Centre | None:
    """Means without images, as far as BatchNorm tells them."""
    own = _space_mean(extractor.space, reference)
    new = None if own is None else typical_mean(extractor.backbone)
    return None if own is None or new is None else Centre(new.double(), own)


def _space_mean(space: CompatSpace, reference: CompatExtractor | None) -> Tensor | None:
    """(D,), from the reference's BatchNorm; without a reference 0 where the space normalises by "batch"."""
    if reference is None:
        return torch.zeros(space.feature_dim).double() if space.normalization == "batch" else None
    linear = copy.deepcopy(reference.interface).cpu().folded()
    if linear is None or (mean := typical_mean(reference.backbone)) is None:
        return None
    weight, bias = linear
    return weight @ mean.double() + bias


def _seen(
    extractor: CompatExtractor, reference: CompatExtractor, seen: Iterable[Passed]
) -> tuple[Moments, Moments, HeldOut]:
    evidence = ImageEvidence(extractor.backbone.num_features, reference.num_features)
    for passed in seen:
        evidence.add(passed)
    fitted, held_out, features = evidence.shared()
    if fitted.count + held_out.count < LEAST_IMAGES:
        raise DataError(
            f"join: expected at least {LEAST_IMAGES} images, got {fitted.count + held_out.count}; give more, "
            "or none to join through the classes in common"
        )
    return fitted, held_out, features


def _known_heads(space: CompatSpace, heads: Sequence[TaskHead]) -> dict[str, nn.Module]:
    """Frozen copies on the CPU of the heads whose answers are compared, by what the report calls them."""
    known: dict[str, nn.Module] = {}
    if has_own_classes(space) and all(head.class_names != space.class_names for head in heads):
        known[OWN_CLASSES] = CommonClassesHead(space)
    for head in heads:
        known[name_of(head, list(known))] = copy.deepcopy(head).cpu().eval()
    return known


def _with_map(interface: Interface, linear: tuple[Tensor, Tensor]) -> Interface:
    """A copy on the CPU with this map."""
    copied = copy.deepcopy(interface).cpu().eval()
    copied.set_linear(*linear)
    return copied


def _chosen(interface: Interface, trial: ClosedForm, held_out: HeldOut, known: Mapping[str, nn.Module]) -> float:
    """How strongly to believe in a rotation: what serves the heads best on held-out images, else what explains most."""

    def loss(strength: float) -> float:
        joined = _with_map(interface, trial.map(strength))(held_out.new)
        if not known:
            return -explained(joined, held_out.space)
        return sum(divergence(joined, held_out.space, head) for head in known.values())

    return min(ALONE, key=loss)


def _measured(
    interface: Interface, held_out: HeldOut, known: Mapping[str, nn.Module]
) -> tuple[dict[str, Agreement], float, float]:
    """Agreement under every head, R^2 and CKA on held-out images, of the map that was fitted without them."""
    joined, targets = interface(held_out.new), held_out.space
    agreements = {name: agreement(joined, targets, head) for name, head in known.items()}
    return agreements, explained(joined, targets), linear_cka(joined, targets)


def _without_classes(
    interface: Interface, trial: ClosedForm, held_out: HeldOut, heads: Mapping[str, nn.Module]
) -> dict[str, Agreement]:
    """Agreement under every head, had the images alone counted."""
    return _measured(_with_map(interface, trial.map(_chosen(interface, trial, held_out, heads))), held_out, heads)[0]


def _shift(images: Moments) -> float:
    """Mean square of the reference features' means, in units of their variance over these images."""
    return float((images.sum_y / images.count).square().sum() / (images.spread() / images.count).sum())


def _training_facts(report: JoinReport) -> dict[str, Any]:
    facts: dict[str, Any] = {"method": "joined in closed form", "rests_on": report.rests_on}
    return facts | {f"agreement under {name}": str(found) for name, found in report.agreements.items()}

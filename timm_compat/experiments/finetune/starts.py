"""Copies from which a training starts: they leave the space behind, and the given parts untouched."""

from collections.abc import Sequence
from typing import Any

import torch

from timm_compat.experiments.copies import extractor_in, own_space
from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.heads import TaskHead
from timm_compat.space import CompatSpace


def copied(extractor: CompatExtractor, trainable: str) -> CompatExtractor:
    """A copy in a space of its own.

    Args:
        extractor: stays as it is.
        trainable: "full", "adapter", or "frozen".
    """
    return extractor_in(own_space(extractor.space), extractor, trainable)


def untrained(extractor: CompatExtractor) -> CompatExtractor:
    """A network of the same build with random weights, in a space of its own."""
    backbone = extractor.backbone
    arguments = {key: value for key, value in backbone.model_args.items() if key != "img_size"}
    return create_extractor(
        extractor.architecture,
        own_space(extractor.space),
        out_index=-1 if backbone.out_index is None else backbone.out_index,
        img_size=backbone.input_size[1:],
        **{"in_chans": backbone.input_size[0], **arguments},
    )


def new_head(space: CompatSpace, class_names: Sequence[str], like: TaskHead | None = None) -> TaskHead:
    """A head at zero, or the copy of another one; of classes that the other does not know, the logits are zero.

    Args:
        space: of the head.
        class_names: in the order of the logits.
        like: form and weights of the head, in a space of the same form.
    """
    if like is None:
        return TaskHead(space, class_names)
    form: dict[str, Any] = {"depth": like.depth, "hidden_dim": like.hidden_dim, "drop_rate": like.drop_rate}
    head = TaskHead(space, class_names, **form)
    head.steps.load_state_dict(like.steps.state_dict())
    known = [
        (place, like.class_names.index(name)) for place, name in enumerate(class_names) if name in like.class_names
    ]
    with torch.no_grad():
        for place, other in known:
            head.classifier.weight[place] = like.classifier.weight[other]
            head.classifier.bias[place] = like.classifier.bias[other]
    return head

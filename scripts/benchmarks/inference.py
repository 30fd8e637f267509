"""A composed model, and the fused one, against the plain timm model of the same size."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch

import timm_compat as tc
from benchmarks.clock import in_turns, timed
from benchmarks.networks import CLASSES, FEATURES

TITLE = "Inference"
TEXT = """Forward passes without gradients, 10 classes, the same batch. *composed* is `tc.compose(extractor, head)`,
which adds an interface of 64 features; *fused* is `model.fuse()`, a plain timm model. Wanted: at most 1.05 and 1.02.
What is added is a fixed tenth of a millisecond or two a pass, which only networks as small as test_resnet feel."""
HEADER = ("architecture", "pixels", "batch", "composed : plain", "fused : plain", "plain, ms")
SECONDS = 0.15  # of one run: as many passes as that takes

# Architecture, pixels, batch.
FULL = (
    *(("resnet18", 224, 1), ("resnet18", 224, 8), ("resnet50", 224, 1), ("vit_tiny_patch16_224", 224, 1)),
    *(("vit_tiny_patch16_224", 224, 8), ("convnext_atto", 224, 1), ("test_resnet", 32, 1), ("test_resnet", 32, 64)),
)
SMALL = (("test_resnet", 32, 1), ("test_vit", 32, 4))


def cells(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """One measurement for every architecture and batch."""
    chosen = SMALL if options.small else FULL
    return {"-".join(map(str, cell)): lambda cell=cell: measure(options, *cell) for cell in chosen}


def measure(options: argparse.Namespace, name: str, size: int, batch: int) -> dict[str, Any]:
    """One row."""
    space = tc.CompatSpace(FEATURES)
    composed = tc.compose(tc.create_extractor(name, space, img_size=size), tc.TaskHead(space, CLASSES)).eval()
    arguments = composed.extractor.backbone.model_args
    models = {
        "composed": composed,
        "fused": composed.fuse(),
        "plain": timm.create_model(name, num_classes=len(CLASSES), **arguments).eval(),
    }
    images = torch.randn(batch, 3, size, size, device=options.device)
    with torch.inference_mode():
        works = {key: partial(model.to(options.device), images) for key, model in models.items()}
        works["plain"]()
        once = timed(works["plain"], options.device)()
        times = 1 if options.small else max(1, round(SECONDS / max(once, 1e-6)))
        found = in_turns({key: timed(work, options.device, times) for key, work in works.items()}, options.repeats)
    return {"row": [name, size, batch], **found}


def row(result: dict[str, Any]) -> list[Any]:
    """The cells of a result's row."""
    return [
        *result["row"], result["ratios"]["composed"], result["ratios"]["fused"], 1000 * result["seconds"]["plain"]
    ]  # fmt: skip

"""Loading a component, checks and all, against timm loading the same weights."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm

import timm_compat as tc
from benchmarks.clock import in_turns, timed
from benchmarks.networks import CLASSES, FEATURES

TITLE = "Loading"
TEXT = """From folders in the page cache, in a process that has loaded this architecture once before. *extractor* is
`CompatExtractor.from_pretrained`, *composed* and *fused* are `tc.load` of a saved `CompatModel`, all with SHA-256,
names, shapes, dtypes and finiteness checked. timm loads the extractor's own file, with
`timm.create_model(name, checkpoint_path=...)`, and checks none of these. *build* is `create_extractor` against
`timm.create_model` without weights. Wanted: at most 1.2."""
HEADER = ("architecture", "MB", "extractor : timm", "composed : timm", "fused : timm", "timm, ms", "build : timm")
FULL = ("resnet18", "resnet50", "vit_small_patch16_224", "convnext_atto", "test_resnet")
SMALL = ("test_resnet",)


def cells(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """One measurement for every architecture."""
    return {name: lambda name=name: measure(options, name) for name in (SMALL if options.small else FULL)}


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """One row."""
    space = tc.CompatSpace(FEATURES, CLASSES, ["common_classes"])
    model = tc.compose(tc.create_extractor(name, space), tc.TaskHead(space, CLASSES)).eval()
    space.finalize()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model.extractor.save_pretrained(root / "extractor")
        model.save_pretrained(root / "composed")
        model.save_pretrained(root / "fused", fused=True)
        file = root / "extractor" / "model.safetensors"
        works = {
            "extractor": lambda: tc.CompatExtractor.from_pretrained(root / "extractor"),
            "composed": lambda: tc.load(root / "composed"),
            "fused": lambda: tc.load(root / "fused"),
            "timm": lambda: timm.create_model(name, num_classes=0, checkpoint_path=str(file)),
        }
        found = in_turns({key: timed(work, "cpu") for key, work in works.items()}, options.repeats)
        megabytes = file.stat().st_size / 1e6
    builds = {
        "build": timed(lambda: tc.create_extractor(name, tc.CompatSpace(FEATURES)), "cpu"),
        "timm": timed(lambda: timm.create_model(name, num_classes=0), "cpu"),
    }
    built = in_turns(builds, options.repeats)
    found["ratios"] |= built["ratios"]
    found["seconds"]["build"], found["seconds"]["timm_build"] = built["seconds"].values()
    return {"row": [name, megabytes], **found}


def row(result: dict[str, Any]) -> list[Any]:
    """The cells of a result's row."""
    ratios = result["ratios"]
    loads = [ratios[key] for key in ("extractor", "composed", "fused")]
    return [*result["row"], *loads, 1000 * result["seconds"]["timm"], ratios["build"]]

"""``timm-compat swap``: another backbone under an existing classifier, as a folder or as a file that runs anywhere."""

import argparse
import json
from pathlib import Path
from typing import Any

from timm_compat.cli.options import (
    add_image_options,
    add_model_options,
    add_run_options,
    given_images,
    model_arguments,
    read_class_names,
    run_keywords,
)
from timm_compat.errors import ConfigError
from timm_compat.joining.swap import swap
from timm_compat.models.composed import CompatModel
from timm_compat.models.export import check_export, export_model
from timm_compat.storage.files import check_new_folder


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    parser = commands.add_parser(
        "swap",
        help="put another backbone under an existing classifier",
        description="The old classifier is split, the new backbone joins its space from the classes in common, from "
        "unlabelled images or from both; the result is a classifier over the old one's classes.",
    )
    parser.add_argument(
        "old",
        metavar="OLD",
        help="a timm model name (its pretrained weights are loaded), or the folder of a composed model",
    )
    parser.add_argument("--backbone", required=True, metavar="NEW", help="a timm model name")
    parser.add_argument(
        "--old-weights", metavar="FILE", help="the old model's weights: safetensors of the plain timm model"
    )
    parser.add_argument("--old-class-names", metavar="FILE", help="the old model's classes, if timm does not know them")
    add_image_options(parser, "unlabelled images, best of the kind that the classifier is for: a folder")
    add_model_options(parser, "the new backbone's")
    parser.add_argument("--output", metavar="DIR", help="a new folder for the classifier")
    parser.add_argument("--fuse", action="store_true", help="write a plain timm model")
    parser.add_argument("--export", metavar="FILE", help="write a .onnx or .pt2 file, which runs without this package")
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    if options.output is None and options.export is None:
        raise ConfigError("expected --output DIR, --export FILE or both, got neither")
    folder = None if options.output is None else check_new_folder(options.output)
    file = None if options.export is None else check_export(options.export)
    settings = {**model_arguments(options), **run_keywords(options)}
    if options.old_class_names is not None:
        settings["old_class_names"] = read_class_names(options.old_class_names)
    images = given_images(options, options.in_chans)
    old: Any = options.old
    if Path(old).is_dir():
        old = CompatModel.from_pretrained(old)
    model = swap(old, options.backbone, images, old_weights=options.old_weights, **settings)
    written = {}
    if file is not None:
        written["export"] = str(export_model(model, file, images))
    if folder is not None:
        written["output"] = str(model.save_pretrained(folder, fused=options.fuse))
    facts = {"space": model.extractor.space.fingerprint, **written, **model.swap_report.to_dict()}
    lines = [f"{model.extractor.architecture} under {options.old}'s {model.num_classes:,} classes"]
    lines += [str(model.swap_report), *(f"{name}: {place}" for name, place in written.items())]
    print(json.dumps(facts) if options.json else "\n".join(lines))

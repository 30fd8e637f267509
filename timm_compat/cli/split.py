"""``timm-compat split``: a trained timm classifier becomes an extractor and a head of a space of its own."""

import argparse
import json
from typing import Any

from timm_compat.cli.options import (
    add_image_options,
    add_model_options,
    add_run_options,
    given_images,
    model_arguments,
    run_keywords,
)
from timm_compat.imagenet import listed_words
from timm_compat.models.split import split
from timm_compat.storage.files import check_new_folder, new_folder


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    parser = commands.add_parser(
        "split",
        help="take a trained timm classifier apart into an extractor and a head",
        description="The extractor and the head together give exactly the classifier's logits. They define a new "
        "space: other networks can join it, with or without images, and then run its heads.",
    )
    parser.add_argument("model", metavar="MODEL", help="a timm model name")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder for space, extractor and head")
    add_model_options(parser)
    add_image_options(parser, "images over which the features are standardised (optional): a folder")
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    folder = check_new_folder(options.output)
    settings, running = model_arguments(options), run_keywords(options)
    images = given_images(options, options.in_chans)
    extractor, head = split(options.model, images=images, **settings, **running)
    with new_folder(folder) as partial:
        for name, part in (("space", extractor.space), ("extractor", extractor), ("head", head)):
            part.save_pretrained(partial / name)
    space = extractor.space
    facts = {
        "output": str(folder),
        "architecture": extractor.architecture,
        "space": space.fingerprint,
        "feature_dim": space.feature_dim,
        "normalization": space.normalization,
        "num_classes": head.num_classes,
        "class_names": list(head.class_names),
    }
    print(json.dumps(facts) if options.json else _text(facts))


def _text(facts: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{facts['architecture']} split: {facts['feature_dim']:,} features, {facts['num_classes']:,} classes",
            f"Classes: {listed_words(facts['class_names'])}",
            f"Space: {facts['space']}, in {facts['output']}/space; extractor and head beside it",
        ]
    )

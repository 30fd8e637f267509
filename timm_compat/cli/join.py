"""``timm-compat join``: an existing backbone becomes an extractor of a space, without labels."""

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
from timm_compat.errors import ConfigError
from timm_compat.joining.join import join
from timm_compat.joining.report import JoinReport
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.space import CompatSpace
from timm_compat.storage.files import check_new_folder


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    parser = commands.add_parser(
        "join",
        help="make an existing backbone compatible with a space, without labels",
        description="Fit the interface of a frozen backbone to a space, in closed form: from the classes that its own "
        "classifier and the space have in common, from unlabelled images and a reference extractor, or from both. All "
        "heads of the space then run on it.",
    )
    parser.add_argument("--space", metavar="ID|DIR", help="the space, with its common classes; needed without images")
    parser.add_argument("--reference", metavar="ID|DIR", help="an extractor of the space; needed with images")
    parser.add_argument("--backbone", required=True, metavar="NAME", help="a timm model name")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder for the extractor")
    parser.add_argument(
        "--head", action="append", default=[], metavar="ID|DIR", help="a head whose agreement is reported (repeatable)"
    )
    parser.add_argument(
        "--no-classes", dest="classes", action="store_false", help="use the images alone, not the classes in common"
    )
    add_model_options(parser, "the backbone's")
    add_image_options(parser, "unlabelled images")
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    folder, running = check_new_folder(options.output), run_keywords(options)
    settings = model_arguments(options)
    if options.space is None and options.reference is None:
        raise ConfigError("join: expected --space, --reference, or both; got neither")
    reference = None if options.reference is None else CompatExtractor.from_pretrained(options.reference)
    if options.space is not None:
        space = CompatSpace.from_pretrained(options.space)
    else:
        assert reference is not None
        space = reference.space
    heads = [TaskHead.from_pretrained(head) for head in options.head]
    if reference is not None:
        settings.setdefault("in_chans", reference.data_config["input_size"][0])
    images = given_images(options, settings.get("in_chans"))
    extractor = join(
        space,
        options.backbone,
        images,
        reference=reference,
        heads=heads,
        classes=options.classes,
        **settings,
        **running,
    )
    report: JoinReport = extractor.fit_report
    facts = {
        "output": str(folder), "space": space.fingerprint, "backbone": options.backbone, "fit": report.to_dict(),
    }  # fmt: skip
    print(json.dumps(facts) if options.json else _text(facts, report), flush=True)  # before it is saved, which may fail
    extractor.save_pretrained(folder)


def _text(facts: dict[str, Any], report: JoinReport) -> str:
    return f"{facts['backbone']} joined space {facts['space']}\n{report}\nExtractor: {facts['output']}"

"""``timm-compat probe``: labelled images become a head on a frozen extractor."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from timm_compat.cli.options import add_place_options, add_run_options, named_set, place, run_keywords
from timm_compat.data.sources import load_dataset
from timm_compat.evaluation.probe import linear_probe
from timm_compat.models.extractor import CompatExtractor
from timm_compat.storage.files import check_new_folder


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    parser = commands.add_parser(
        "probe",
        help="train a head on a frozen extractor with labelled images, in seconds",
        description="Logistic regression on the features of one pass over the images; cross-validation chooses its "
        "penalty. The head runs on every extractor of the space.",
    )
    parser.add_argument("extractor", metavar="EXTRACTOR", help="Hub id or folder")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="a folder with one subfolder per class, or a data set (with --root)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder for the head")
    parser.add_argument("--root", metavar="DIR", help="folder of the data set, if --data is a name")
    parser.add_argument("--split", default="train", help="split to train on (default: %(default)s)")
    parser.add_argument(
        "--test-split", metavar="NAME", help="split to test on (default: cross-validation on the training split)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="train on at most N images")
    add_place_options(parser)
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    folder, running = check_new_folder(options.output), run_keywords(options)
    name, root = named_set(options.data, options.root, "folder")
    extractor = CompatExtractor.from_pretrained(options.extractor, **place(options))
    settings: dict[str, Any] = {"in_chans": extractor.data_config["input_size"][0]}
    images = load_dataset(name, root, options.split, limit=options.limit, **settings)
    test = None if options.test_split is None else load_dataset(name, root, options.test_split, **settings)
    head = linear_probe(extractor, images, test_images=test, **running)
    head.save_pretrained(folder)
    report = asdict(head.fit_report)
    facts = {"output": str(folder), "space": head.space.fingerprint, "class_names": list(head.class_names), **report}
    print(json.dumps(facts) if options.json else _text(facts))


def _text(facts: dict[str, Any]) -> str:
    lines = [
        f"A head over {facts['num_classes']} classes from {facts['num_images']:,} images in {facts['seconds']:.1f} s "
        f"(penalty {facts['penalty']:.2g})"
    ]
    if facts["accuracy"] is None:
        lines.append("Accuracy: not measured, for no class has an image to spare; give --test-split")
    else:
        low, high = facts["interval"]
        lines.append(
            f"Accuracy: {facts['accuracy']:.3f} ({low:.3f} to {high:.3f}) on {facts['num_held_out']:,} images, by "
            f"{facts['measured_by']}"
        )
    return "\n".join([*lines, f"Head: {facts['output']}"])

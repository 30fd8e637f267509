"""``timm-compat join``: make a backbone that exists already compatible with a space, on unlabelled images."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timm_compat.data.sources import load_dataset
from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.weights import load_weights
from timm_compat.space import CompatSpace
from timm_compat.storage.files import check_new_folder
from timm_compat.training.join import join
from timm_compat.training.members import Images


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    parser = commands.add_parser(
        "join",
        help="fit a frozen backbone to an existing space on unlabelled images",
        description="A frozen backbone gets an interface that reproduces the features of a reference extractor on "
        "unlabelled images, in closed form; the space's heads then run on it.",
    )
    parser.add_argument(
        "--reference", required=True, metavar="ID|DIR", help="an extractor of the space: a Hub id or a folder"
    )
    parser.add_argument("--backbone", required=True, metavar="NAME", help="a timm model")
    parser.add_argument(
        "--images", required=True, metavar="DIR", help="images, or the name of a data set (with --root)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder for the extractor")
    parser.add_argument("--space", metavar="ID|DIR", help="the space, to make sure of it; the reference's if left out")
    parser.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="ID|DIR",
        help="a head that is to run on it: the fit is refined for it (repeat)",
    )
    parser.add_argument("--no-self-training", action="store_true", help="do not refine the fit through the heads")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="load timm's weights of the backbone")
    weights.add_argument("--weights", metavar="FILE", help="safetensors of the plain timm model")
    parser.add_argument("--root", metavar="DIR", help="where the data set is, if --images is a name")
    parser.add_argument("--split", default="train", help="of the data set (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use at most so many images")
    parser.add_argument("--img-size", type=int, help="of the backbone's images; its own if left out")
    parser.add_argument("--in-chans", type=int, help="channels of the backbone's images; the reference's if left out")
    parser.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    folder = check_new_folder(options.output)
    reference = CompatExtractor.from_pretrained(options.reference)
    space = reference.space if options.space is None else CompatSpace.from_pretrained(options.space)
    heads = [TaskHead.from_pretrained(head) for head in options.head]
    channels = options.in_chans or reference.data_config["input_size"][0]
    images = _images(options, channels)
    settings: dict[str, Any] = {"img_size": options.img_size, "self_training": not options.no_self_training}
    model: Any = options.backbone
    if options.weights is None:
        settings |= {"pretrained": options.pretrained, "in_chans": channels}
    else:
        built = create_extractor(model, CompatSpace(1), img_size=options.img_size, in_chans=channels)
        load_weights(built.backbone, options.weights)
        model = built.backbone.model
    extractor = join(space, model, images, reference=reference, heads=heads, **settings)
    report = asdict(extractor.fit_report)
    facts = {"output": str(folder), "space": space.fingerprint, "backbone": options.backbone, "fit": report}
    print(json.dumps(facts) if options.json else _text(facts), flush=True)  # also where it cannot be written
    extractor.save_pretrained(folder)


def _images(options: argparse.Namespace, channels: int) -> Images:
    is_folder = options.root is None and Path(options.images).is_dir()
    name, root = ("images", options.images) if is_folder else (options.images, options.root)
    images: Images = load_dataset(
        name, root, options.split, limit=options.limit, in_chans=channels, skip_corrupt=options.skip_corrupt
    )
    return images


def _text(facts: dict[str, Any]) -> str:
    fit = facts["fit"]
    lines = [f"{facts['backbone']} joined space {facts['space']}, fitted on {fit['num_images']} unlabelled images"]
    lines += [f"  {name}: {value:.4g}" for name, value in fit.items() if isinstance(value, float)]
    return "\n".join([*lines, f"Extractor: {facts['output']}"])

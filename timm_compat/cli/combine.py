"""``timm-compat compose`` and ``predict``: put parts from folders or the Hub together as a classifier, and use it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from timm_compat.cli.options import add_place_options, add_run_options, place, run_options
from timm_compat.errors import DataError, SpaceMismatchError
from timm_compat.experiments.predict import Prediction, image_files, open_classifier, predict
from timm_compat.imagenet import listed_words, short_words
from timm_compat.models.composed import compose
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.space import CompatSpace
from timm_compat.storage.files import ROOT_KEY, check_new_folder
from timm_compat.storage.reading import Files, open_files, pinned
from timm_compat.storage.source import Where
from timm_compat.vocabulary import printable


def add_parser(commands: Any) -> None:
    """Add both commands to the parser's commands."""
    parser = commands.add_parser(
        "compose",
        help="put an extractor and a head of one space together as a classifier",
        description="Put an extractor and a head of one space together as a classifier. Whether they fit is checked "
        "before any weights are downloaded.",
    )
    parser.add_argument("extractor", metavar="EXTRACTOR", help="Hub id or folder")
    parser.add_argument("head", metavar="HEAD", help="Hub id or folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder for the model")
    parser.add_argument("--fuse", action="store_true", help="write (and push) a plain timm model")
    parser.add_argument("--push", metavar="ID", help="also push the model to this Hub repository")
    add_place_options(parser, revision=False)
    parser.set_defaults(run=run_compose)
    uses = commands.add_parser("predict", help="classify an image, or every image in a folder")
    uses.add_argument("model", metavar="MODEL", help="Hub id or folder of a classifier, or of an extractor with --head")
    uses.add_argument("images", metavar="PATH", help="an image or a folder")
    uses.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="ID|DIR",
        help="a head for the extractor, or one more for a composed model; NAME=ID names it (repeatable)",
    )
    uses.add_argument("--skip-corrupt", action="store_true", help="exit with 0 even if some images cannot be decoded")
    uses.add_argument("--top", type=int, default=3, metavar="N", help="classes shown per image (default: %(default)s)")
    add_run_options(uses)
    add_place_options(uses)
    uses.set_defaults(run=run_predict)
    for each in (parser, uses):
        each.add_argument("--json", action="store_true", help="print JSON instead of text")


def run_compose(options: argparse.Namespace) -> None:
    """Run ``compose``.

    Raises:
        CompatError: any of ours.
    """
    where = place(options)
    if options.output is not None:
        check_new_folder(options.output)
    body, top = _check_fit(options.extractor, options.head, where)
    extractor = CompatExtractor.from_pretrained(options.extractor, **pinned(where, body))
    model = compose(extractor, TaskHead.from_pretrained(options.head, **pinned(where, top)))
    facts: dict[str, Any] = {
        "extractor": str(model.extractor.source),
        "head": str(model.head.source),
        "space": model.extractor.space.fingerprint,
        "class_names": list(model.class_names),
    }
    if options.output is not None:
        facts["output"] = str(model.save_pretrained(options.output, fused=options.fuse))
    if options.push is not None:
        facts["pushed"] = str(model.push_to_hub(options.push, fused=options.fuse))
    shown = listed_words(model.class_names)
    lines = [
        f"{facts['extractor']} and {facts['head']} fit: space {facts['space']}",
        f"{model.num_classes:,} classes: {shown}",
    ]
    lines += [f"{name}: {facts[name]}" for name in ("output", "pushed") if name in facts]
    print(json.dumps(facts) if options.json else "\n".join(lines))


def _check_fit(extractor: str, head: str, where: Where) -> list[Files]:
    # By their configs alone. The files are returned, so that the weights are loaded from what was checked.
    spaces, found = [], []
    for role, location in (("extractor", extractor), ("head", head)):
        files = open_files(location, **where)
        spaces.append(CompatSpace.from_config(files.config(role)[ROOT_KEY].get("space")))
        found.append(files)
    # Of the shared parts' long digests only their names.
    lines = [line.partition(":")[0] if "{" in line else line for line in spaces[0].differences(spaces[1])]
    if lines:
        raise SpaceMismatchError(
            f"{extractor} and {head} do not fit: their spaces {spaces[0].fingerprint} and {spaces[1].fingerprint} "
            f"differ in {'; '.join(lines)}; see timm-compat search --space {spaces[0].fingerprint} --role head"
        )
    return found


def run_predict(options: argparse.Namespace) -> int:
    """Run ``predict`` on all images that can be decoded.

    Returns:
        1 if a file could not be decoded and ``--skip-corrupt`` was not given, else 0.

    Raises:
        CompatError: any of ours; a ``DataError`` where no file could be decoded.
    """
    run, files = run_options(options), image_files(options.images)
    classifier = open_classifier(options.model, options.head, **place(options))
    failed: list[DataError] = []

    def left_out(position: int, error: DataError) -> None:
        failed.append(error)
        if len(files) > 1:
            print(f"timm-compat: left out {error}", file=sys.stderr, flush=True)

    width, listed = max(len(str(file)) for file in files), []
    for one in predict(classifier, files, options.top, options=run, left_out=left_out):
        if options.json:
            listed.append(_as_json(one))
        else:
            print(f"{one.file:{width}}  {_as_text(one)}", flush=True)
    if len(failed) == len(files):
        raise (
            failed[0]
            if len(files) == 1
            else DataError(f"{options.images}: expected images that can be decoded, got none among {len(files)} files")
        )
    if options.json:
        print(json.dumps(listed))
    return 1 if failed and not options.skip_corrupt else 0


def _as_json(one: Prediction) -> dict[str, Any]:
    answers = {
        head: [{"name": name, "probability": share} for name, share in classes] for head, classes in one.heads.items()
    }
    single = answers.get("")
    return {"file": one.file, **({"heads": answers} if single is None else {"classes": single})}


def _as_text(one: Prediction) -> str:
    texts = {
        head: "   ".join(f"{short_words(name)} {share:.3f}" for name, share in classes)
        for head, classes in one.heads.items()
    }
    return "   |   ".join(f"{printable(head)}: {text}" if head else text for head, text in texts.items())

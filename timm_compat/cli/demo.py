"""``timm-compat demo``: train, recombine and join on real digits, offline."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from timm_compat.errors import ConfigError
from timm_compat.experiments.demo import PICTURE_FILE, DemoConfig, DemoResult, run_demo
from timm_compat.storage.files import check_new_folder

DEFAULT_OUTPUT = "timm-compat-demo"
USAGE = """\
import timm_compat as tc
extractor = tc.CompatExtractor.from_pretrained("{folder}/compatible/extractor-a")
head = tc.TaskHead.from_pretrained("{folder}/compatible/head-b")
model = tc.compose(extractor, head)
logits = model(extractor.preprocess(tc.data.load_digits("test").images))"""


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    defaults = DemoConfig()
    parser = commands.add_parser(
        "demo",
        help="two extractors trade their heads on real handwritten digits",
        description="Two extractors of different architectures, trained on disjoint halves of scikit-learn's digits, "
        "trade their task heads: once trained in one space, once trained apart and joined afterwards.",
    )
    parser.add_argument("--backbones", metavar="A,B", default=",".join(defaults.backbones), help="two timm models")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, default=defaults.epochs, help="epochs of each training (default: %(default)s)"
    )
    parser.add_argument(
        "--img-size",
        type=int,
        default=defaults.img_size,
        help="height and width to which digits are enlarged, in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"a new folder (default: {DEFAULT_OUTPUT}, numbered)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1, enough for small networks)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    if options.threads < 1:
        raise ConfigError(f"threads: expected an integer of at least 1, got {options.threads}")
    torch.set_num_threads(options.threads)
    config = DemoConfig(tuple(options.backbones.split(",")), options.seed, options.epochs, options.img_size)
    folder = check_new_folder(_free_folder() if options.output is None else options.output)
    result = run_demo(config, say=lambda line: print(line, file=sys.stderr, flush=True))
    # Printed first: results must not be lost if the disk is full by now.
    if options.json:
        facts = _facts(config, folder)
        print(json.dumps({**result.summary(), **facts, "matrices": result.matrices()}), flush=True)
    else:
        print(_report(result), flush=True)
    saved = result.save(folder)
    if not options.json:
        print(_written(saved))


def _free_folder() -> Path:
    folder, number = Path(DEFAULT_OUTPUT), 1
    while folder.exists():
        number += 1
        folder = Path(f"{DEFAULT_OUTPUT}-{number}")
    return folder


def _facts(config: DemoConfig, folder: Path) -> dict[str, Any]:
    return {"backbones": list(config.backbones), "seed": config.seed, "output": str(folder)}


def _report(result: DemoResult) -> str:
    summary = result.summary()
    tables = (
        ("Trained in one space, with shared heads", result.compatible),
        ("Trained independently", result.independent),
        ("The independent backbones, frozen and joined from unlabelled images", result.joined),
    )
    lines = ["", "Accuracy on 449 test digits; bold: an extractor under its own head."]
    for title, matrix in tables:
        lines += ["", title, "", matrix.to_markdown()]
    lines += [
        "",
        f"native {summary['native']:.3f}   recombined {summary['recombined']:.3f}   "
        f"independent {summary['independent']:.3f}   chance {summary['chance']:.3f}",
        f"joined {summary['joined']:.3f}   ceiling (heads retrained with labels) {summary['ceiling']:.3f}   "
        f"{summary['seconds']:.0f} s",
    ]
    return "\n".join(lines)


def _written(folder: Path) -> str:
    picture = folder / PICTURE_FILE
    return "\n".join(
        [
            "",
            f"Picture: {picture}" if picture.exists() else 'Picture: none; it needs pip install "timm-compat[plots]"',
            f"Components: {folder}. Recombine them in five lines:",
            "",
            USAGE.format(folder=folder),
        ]
    )

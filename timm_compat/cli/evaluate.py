"""``timm-compat evaluate``: every extractor under every head, compared with baselines, as a report."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from timm_compat.cli.options import add_run_options, named_set, run_options
from timm_compat.data.listing import ALL, is_divided
from timm_compat.data.sources import load_dataset
from timm_compat.errors import ConfigError
from timm_compat.evaluation.answers import Images
from timm_compat.evaluation.baselines import BASELINES
from timm_compat.evaluation.report import EvaluationReport
from timm_compat.evaluation.report_text import HTML_FILE, save_report, summary_text
from timm_compat.experiments.evaluate import EvaluateConfig, evaluate
from timm_compat.experiments.parts import load_parts
from timm_compat.processes import current_process
from timm_compat.storage.files import check_new_folder


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    parser = commands.add_parser(
        "evaluate",
        help="measure every extractor under every head",
        description="Measure the accuracy of every extractor under every head on labelled images, classes matched by "
        "name, with scores and intervals; on request with baselines, retrieval and a one-page report.",
    )
    parser.add_argument(
        "components",
        nargs="+",
        metavar="COMPONENT",
        help="extractors and heads in any order; NAME=COMPONENT names one; a head belongs to the extractor of its name",
    )
    parser.add_argument("--data", required=True, metavar="NAME", help="a data set's name, or a folder of class folders")
    parser.add_argument("--root", metavar="DIR", help="folder of the data set, if --data is a name")
    parser.add_argument("--split", help="split to test on (default: test; all of a folder without splits)")
    parser.add_argument("--limit", type=int, metavar="N", help="use at most N images of it, drawn at random")
    parser.add_argument(
        "--in-chans", type=int, metavar="N", help="channels of the images (default: those of the extractors)"
    )
    parser.add_argument(
        "--cross-space", action="store_true", help="allow components of different spaces, and mark them"
    )
    parser.add_argument(
        "--baselines",
        nargs="?",
        const=",".join(BASELINES),
        default="",
        metavar="NAMES",
        help=f"also fit baselines: all, or some of {','.join(BASELINES)}",
    )
    parser.add_argument(
        "--train-split", default="train", metavar="NAME", help="split to fit baselines on (default: %(default)s)"
    )
    parser.add_argument("--train-limit", type=int, metavar="N", help="use at most N images of it, drawn at random")
    parser.add_argument(
        "--retrieval", action="store_true", help="also measure retrieval: queries of one extractor, gallery of another"
    )
    parser.add_argument("--history", metavar="FILE", help="history.jsonl of a training, to show its curves")
    parser.add_argument(
        "--alone",
        metavar="FILE",
        help="report.json of the same networks trained independently, for update gain and cost",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of limits and baselines (default: %(default)s)"
    )
    add_run_options(parser)
    parser.add_argument("--report", metavar="DIR", help="a new folder for report.html, report.md and report.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    folder = None if options.report is None else check_new_folder(options.report)
    names = tuple(filter(None, options.baselines.split(",")))
    config = EvaluateConfig(
        cross_space=options.cross_space,
        baselines=names,
        retrieval=options.retrieval,
        pictures=folder is not None,
        seed=options.seed,
        options=run_options(options),
    )
    options.split = options.split or ("test" if _undivided_folder(options) is None else ALL)
    if names:
        _check_fresh(options)
    parts = load_parts(options.components)
    channels = options.in_chans or next(iter(parts.extractors.values())).data_config["input_size"][0]
    report = evaluate(
        parts,
        _images(options, options.split, options.limit, channels),
        config,
        test_name=_title(options, options.split),
        train=_images(options, options.train_split, options.train_limit, channels) if names else None,
        train_name=_title(options, options.train_split),
        command=shlex.join(["timm-compat", *options.words]),
        history=_history(options.history),
        alone=_alone(options.alone),
    )
    if current_process()[0] == 0:
        # Printed first: results must not be lost if the disk is full by now.
        print(json.dumps(report.to_dict()) if options.json else _text(report), flush=True)
        if folder is not None:
            save_report(report, folder)
            if not options.json:
                print(f"\nReport: {folder / HTML_FILE}")


def _images(options: argparse.Namespace, split: str, limit: int | None, channels: int) -> Images:
    name, root = named_set(options.data, options.root, "folder")
    images: Images = load_dataset(name, root, split, limit=limit, seed=options.seed, in_chans=channels)
    return images


def _check_fresh(options: argparse.Namespace) -> None:
    """Baselines must not be fitted on the images that they are measured on."""
    if options.split == options.train_split or _undivided_folder(options) is not None:
        raise ConfigError(
            "baselines: expected training images apart from the test images, got the same; give a folder with one "
            f"subfolder a split, such as {options.train_split} and test, or another --train-split"
        )


def _undivided_folder(options: argparse.Namespace) -> Path | None:
    place = options.data if options.root is None else options.root
    is_folder = options.root is None or options.data.lower() == "folder"
    return Path(place) if is_folder and Path(place).is_dir() and not is_divided(Path(place)) else None


def _title(options: argparse.Namespace, split: str) -> str:
    return f"{options.data}, {split}"


def _history(file: str | None) -> list[dict[str, float]]:
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"history: expected a file of JSON lines, got {error}") from error
    if not all(isinstance(record, dict) for record in records):
        raise ConfigError(f"history: expected one JSON object per line in {file!r}")
    return records


def _alone(file: str | None) -> Any:
    if file is None:
        return None
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"alone: expected a report.json, got {error}") from error


def _text(report: EvaluationReport) -> str:
    return "\n".join([report.matrix.to_markdown(), "", summary_text(report)])

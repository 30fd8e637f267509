"""``timm-compat demo``: two networks share heads on real digits, pretrained or, where no weights are, trained."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from timm_compat.errors import BackboneError, ConfigError, HubError
from timm_compat.experiments.demo import PICTURE_FILE, DemoConfig, DemoResult, run_demo
from timm_compat.experiments.demo_pretrained import PretrainedDemoConfig, PretrainedDemoResult, run_pretrained_demo
from timm_compat.experiments.pretrained_weights import fetch_pretrained
from timm_compat.storage.files import check_new_folder

DEFAULT_OUTPUT = "timm-compat-demo"
USAGE = """\
import timm_compat as tc
extractor = tc.CompatExtractor.from_pretrained("{folder}/{extractor}")
head = tc.TaskHead.from_pretrained("{folder}/{head}")
model = tc.compose(extractor, head)
logits = model(extractor.preprocess(tc.data.load_digits("test").images))"""


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    pretrained, trained = PretrainedDemoConfig(), DemoConfig()
    parser = commands.add_parser(
        "demo",
        help="two networks share their heads on real handwritten digits",
        description="Two ImageNet networks, where timm's weights are in the Hub's cache or can be fetched within a "
        "minute: the head that one learned for scikit-learn's digits runs on the other, which joined its space "
        "without labels. Elsewhere two small networks are trained on disjoint halves of the digits and trade their "
        "heads: once trained in one space, once trained apart and joined afterwards.",
    )
    parser.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        help="insist on pretrained networks, or train small ones (default: pretrained ones where they can be had)",
    )
    parser.add_argument(
        "--backbones",
        metavar="A,B",
        help=f"two timm models (default: {','.join(pretrained.backbones)}; trained: {','.join(trained.backbones)})",
    )
    parser.add_argument("--seed", type=int, help=f"random seed (default: {trained.seed})")
    parser.add_argument(
        "--epochs", type=int, help=f"epochs of each training (default: {trained.epochs}); implies --no-pretrained"
    )
    parser.add_argument(
        "--img-size",
        type=int,
        help="height and width to which digits are enlarged, in pixels (default: "
        f"{pretrained.img_size}; trained: {trained.img_size})",
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
    pretrained, trained = _configs(options)
    folder = check_new_folder(_free_folder() if options.output is None else options.output)
    with _weights(options, pretrained) as files:
        config = trained if files is None else pretrained
        result = run_demo(trained, _say) if files is None else run_pretrained_demo(pretrained, files, _say)
    # Printed first: results must not be lost if the disk is full by now.
    if options.json:
        facts = {**_facts(config, folder), "pretrained": files is not None}
        print(json.dumps({**result.summary(), **facts, "matrices": result.matrices()}), flush=True)
    else:
        print(_report(result), flush=True)
    saved = result.save(folder)
    if not options.json:
        print(_written(saved, result))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _configs(options: argparse.Namespace) -> tuple[PretrainedDemoConfig, DemoConfig]:
    """Both, so that a mistake is told before anything is fetched or trained."""
    if options.pretrained and options.epochs is not None:
        raise ConfigError(
            f"epochs: expected none with --pretrained, which trains no network, got {options.epochs}; drop one of them"
        )
    names = None if options.backbones is None else tuple(options.backbones.split(","))
    wishes = {"backbones": names, "seed": options.seed, "img_size": options.img_size}
    given: dict[str, Any] = {name: value for name, value in wishes.items() if value is not None}
    training = {} if options.epochs is None else {"epochs": options.epochs}
    return PretrainedDemoConfig(**given), DemoConfig(**given, **training)


@contextmanager
def _weights(options: argparse.Namespace, config: PretrainedDemoConfig) -> Iterator[list[Path] | None]:
    """Files of pretrained weights for a block; None where networks are to be trained."""
    if options.pretrained is False or options.epochs is not None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="timm-compat-") as folder:
        _say(
            f"0/3  looking for the pretrained weights of {' and '.join(config.backbones)}, in the cache and on the Hub"
        )
        files: list[Path] | None = None
        try:
            files = fetch_pretrained(config.backbones, Path(folder), **config.arguments)
        except (BackboneError, HubError) as error:
            if options.pretrained:
                raise
            _say(f"no pretrained weights, so small networks are trained instead: {error}")
        yield files


def _free_folder() -> Path:
    folder, number = Path(DEFAULT_OUTPUT), 1
    while folder.exists():
        number += 1
        folder = Path(f"{DEFAULT_OUTPUT}-{number}")
    return folder


def _facts(config: DemoConfig | PretrainedDemoConfig, folder: Path) -> dict[str, Any]:
    return {"backbones": list(config.backbones), "seed": config.seed, "output": str(folder)}


def _report(result: DemoResult | PretrainedDemoResult) -> str:
    lines = ["", "Accuracy on 449 test digits; bold: an extractor under its own head."]
    return "\n".join(lines + (_trained(result) if isinstance(result, DemoResult) else _pretrained(result)))


def _trained(result: DemoResult) -> list[str]:
    summary = result.summary()
    tables = (
        ("Trained in one space, with shared heads", result.compatible),
        ("Trained independently", result.independent),
        ("The independent backbones, frozen and joined from unlabelled images", result.joined),
    )
    return [
        *(line for title, matrix in tables for line in ("", title, "", matrix.to_markdown())),
        "",
        f"native {summary['native']:.3f}   recombined {summary['recombined']:.3f}   "
        f"independent {summary['independent']:.3f}   chance {summary['chance']:.3f}",
        f"joined {summary['joined']:.3f}   ceiling (heads retrained with labels) {summary['ceiling']:.3f}   "
        f"{summary['seconds']:.0f} s",
    ]


def _pretrained(result: PretrainedDemoResult) -> list[str]:
    summary, report = result.summary(), result.report
    return [
        "",
        f"The head of {result.reference.architecture} was fitted to {result.num_labelled} labelled digits",
        "",
        result.matrix.to_markdown(),
        "",
        f"ceiling (head retrained with labels) {summary['ceiling']:.3f}   chance {summary['chance']:.3f}   "
        f"{summary['seconds']:.0f} s",
        f"The last join rests on {report.rests_on};",
        f"before any label it expected the head to answer on both networks alike: {result.expected}",
    ]


def _written(folder: Path, result: DemoResult | PretrainedDemoResult) -> str:
    picture, trained = folder / PICTURE_FILE, isinstance(result, DemoResult)
    extractor, head = ("compatible/extractor-a", "compatible/head-b") if trained else ("extractor-b", "head-digits")
    return "\n".join(
        [
            "",
            f"Picture: {picture}" if picture.exists() else 'Picture: none; it needs pip install "timm-compat[plots]"',
            f"Components: {folder}. Recombine them in five lines:",
            "",
            USAGE.format(folder=folder, extractor=extractor, head=head),
        ]
    )

"""``timm-compat finetune``: does a compatible start, a cheap head or an adapter save training on a target task?"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_compat.cli.recipe_options import add_recipe_options, run_application

if TYPE_CHECKING:
    from timm_compat.experiments.finetune.run import FinetuneResult


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    parser = commands.add_parser(
        "finetune",
        help="learn a target task with compatible parts, beside the usual way",
        description="Learn a target task from a compatible head and extractor, with a head trained on a cheap "
        "extractor, or with adapters on frozen backbones (sections of the recipe), and measure accuracy against "
        "steps, seconds, floating-point operations and memory beside the usual way.",
    )
    add_recipe_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    from timm_compat.experiments.finetune.recipe import FinetuneRecipe
    from timm_compat.experiments.finetune.run import run_finetune

    run_application(options, FinetuneRecipe, run_finetune, _report)


def _report(result: "FinetuneResult") -> str:
    from timm_compat.experiments.finetune.run import PICTURE_FILE
    from timm_compat.experiments.finetune.sections import ADAPTERS, CHEAP_HEAD, START

    titles = {
        START: "Where the training of a whole network starts",
        CHEAP_HEAD: "Where a head is trained that runs on the expensive extractor",
        ADAPTERS: "What learns, from one backbone",
    }
    seeds = result.recipe.seeds
    lines = [f"Accuracy on the target's test images; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}.", ""]
    for section, table in result.tables().items():
        lines += [titles[section], "", table, ""]
    folder = result.recipe.output_dir
    if folder is None:
        return "\n".join([*lines, "Nothing was kept: give --output DIR"])
    if (Path(folder) / PICTURE_FILE).exists():
        lines.append(f"Picture: {Path(folder) / PICTURE_FILE}")
    return "\n".join([*lines, f"Components, results and recipe: {folder}"])

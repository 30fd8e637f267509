"""``timm-compat finetune``: does a compatible start, a cheap head or an adapter save training on a target task?"""

from pathlib import Path
from typing import Any

from timm_compat.applications.transfer_learning.recipe import FinetuneRecipe
from timm_compat.applications.transfer_learning.run import PICTURE_FILE, FinetuneResult, run_finetune
from timm_compat.applications.transfer_learning.sections import ADAPTERS, CHEAP_HEAD, START
from timm_compat.cli.recipe_options import add_run_command

TITLES = {
    START: "Where the training of a whole network starts",
    CHEAP_HEAD: "Where a head is trained that runs on the expensive extractor",
    ADAPTERS: "What learns, from one backbone",
}


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    add_run_command(
        commands,
        "finetune",
        FinetuneRecipe,
        run_finetune,
        _report,
        help="learn a target task with compatible parts, beside the usual way",
        description="Learn a target task from a compatible head and extractor, with a head trained on a cheap "
        "extractor, or with adapters on frozen backbones (sections of the recipe), and measure accuracy against "
        "steps, seconds, floating-point operations and memory beside the usual way.",
    )


def _report(result: FinetuneResult) -> str:
    seeds = result.recipe.seeds
    lines = [f"Accuracy on the target's test images; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}.", ""]
    for section, table in result.tables().items():
        lines += [TITLES[section], "", table, ""]
    folder = result.recipe.output_dir
    if folder is None:
        return "\n".join([*lines, "Nothing was kept: give --output DIR"])
    if (Path(folder) / PICTURE_FILE).exists():
        lines.append(f"Picture: {Path(folder) / PICTURE_FILE}")
    return "\n".join([*lines, f"Components, results and recipe: {folder}"])

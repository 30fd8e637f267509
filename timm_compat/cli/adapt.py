"""``timm-compat adapt``: from labelled source images to unlabelled target images."""

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from timm_compat.cli.recipe_options import add_recipe_options, run_application

if TYPE_CHECKING:
    from timm_compat.experiments.adapt.run import AdaptResult


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    parser = commands.add_parser(
        "adapt",
        help="adapt a classifier to images of another domain, without their labels",
        description="Adapt a classifier from labelled source images to unlabelled target images, in every mode that "
        "the recipe (YAML) names, and measure each over seeds. Unlabelled images choose the mode to use.",
    )
    add_recipe_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    from timm_compat.experiments.adapt.recipe import AdaptRecipe
    from timm_compat.experiments.adapt.run import run_adaptation

    run_application(options, AdaptRecipe, run_adaptation, _report)


def _report(result: "AdaptResult") -> str:
    from timm_compat.experiments.adapt.recipe import MODES
    from timm_compat.experiments.adapt.run import COMPONENTS, SELECTED

    recipe, picked = result.recipe, Counter(result.selected)
    explained = {mode: MODES[mode] for mode in recipe.chosen_modes}
    explained[SELECTED] = f"what unlabelled target images choose by {recipe.select}: " + ", ".join(
        f"{mode} ({count} of {len(result.selected)})" for mode, count in picked.items()
    )
    width = max(map(len, explained))
    return "\n".join(
        [
            f"Mean over seeds {', '.join(map(str, recipe.seeds))} ± standard deviation; information in nats.",
            "",
            result.to_markdown(),
            "",
            *(f"{mode.ljust(width)}  {text}" for mode, text in explained.items()),
            "",
            "Nothing was kept: give --output DIR"
            if recipe.output_dir is None
            else f"Target extractor, head and space of each seed: {recipe.output_dir}/{COMPONENTS}",
        ]
    )

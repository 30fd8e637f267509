"""``timm-compat transfer``: heads on other architectures, and on the extractor that replaces an old one."""

import argparse
import json
from typing import Any

from timm_compat.cli.run_options import add_run_command, chosen_recipe


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    add_run_command(
        commands,
        "transfer",
        run,
        help="put heads on other architectures, or on a new extractor that replaces an old one",
        description="Measure how heads do on extractors that they were not trained with, over seeds: exchanged among "
        "architectures (transfer in the recipe), or kept while a new extractor replaces an old one (upgrade).",
    )


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    from timm_compat.applications.classifier_transfer.recipe import ClassifierTransferRecipe
    from timm_compat.applications.classifier_transfer.run import run_classifier_transfer

    recipe = chosen_recipe(ClassifierTransferRecipe, options)
    result = run_classifier_transfer(recipe, resume=options.resume)
    if options.json:
        print(json.dumps(result.summary()))
        return
    kept = "Nothing was kept: give --output DIR" if recipe.output_dir is None else f"Everything: {recipe.output_dir}"
    print(f"{result.to_markdown()}\n\n{kept}")

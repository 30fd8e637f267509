"""``timm-compat transfer``: heads on other architectures, and on the extractor that replaces an old one."""

import argparse
from typing import TYPE_CHECKING, Any

from timm_compat.cli.recipe_options import add_recipe_options, run_application

if TYPE_CHECKING:
    from timm_compat.experiments.transfer.run import ClassifierTransferResult


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    parser = commands.add_parser(
        "transfer",
        help="put heads on other architectures, or on a new extractor that replaces an old one",
        description="Measure how heads do on extractors that they were not trained with, over seeds: exchanged among "
        "architectures (transfer in the recipe), or kept while a new extractor replaces an old one (upgrade).",
    )
    add_recipe_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CompatError: any of ours.
    """
    from timm_compat.experiments.transfer.recipe import ClassifierTransferRecipe
    from timm_compat.experiments.transfer.run import run_classifier_transfer

    run_application(options, ClassifierTransferRecipe, run_classifier_transfer, _report)


def _report(result: "ClassifierTransferResult") -> str:
    folder = result.recipe.output_dir
    kept = "Nothing was kept: give --output DIR" if folder is None else f"Everything: {folder}"
    return f"{result.to_markdown()}\n\n{kept}"

"""``timm-compat transfer``: heads on other architectures, and on the extractor that replaces an old one."""

from typing import Any

from timm_compat.applications.classifier_transfer.recipe import ClassifierTransferRecipe
from timm_compat.applications.classifier_transfer.run import ClassifierTransferResult, run_classifier_transfer
from timm_compat.cli.recipe_options import add_run_command


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    add_run_command(
        commands,
        "transfer",
        ClassifierTransferRecipe,
        run_classifier_transfer,
        _report,
        help="put heads on other architectures, or on a new extractor that replaces an old one",
        description="Measure how heads do on extractors that they were not trained with, over seeds: exchanged among "
        "architectures (transfer in the recipe), or kept while a new extractor replaces an old one (upgrade).",
    )


def _report(result: ClassifierTransferResult) -> str:
    folder = result.recipe.output_dir
    kept = "Nothing was kept: give --output DIR" if folder is None else f"Everything: {folder}"
    return f"{result.to_markdown()}\n\n{kept}"

"""``timm-compat transfer``: heads on other architectures, and on the extractor that replaces an old one."""

from typing import Any

from timm_compat.cli.recipe_options import add_experiment


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    add_experiment(
        commands,
        "transfer",
        "run_classifier_transfer",
        help="put heads on other architectures, or on a new extractor that replaces an old one",
        description="Measure how heads do on extractors that they were not trained with, over seeds: exchanged among "
        "architectures (transfer in the recipe), or kept while a new extractor replaces an old one (upgrade).",
    )

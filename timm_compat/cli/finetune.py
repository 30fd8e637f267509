"""``timm-compat finetune``: does a compatible start, a cheap head or an adapter save training on a target task?"""

from typing import Any

from timm_compat.cli.recipe_options import add_experiment


def add_parser(commands: Any) -> None:
    """Add this command to the parser's commands."""
    add_experiment(
        commands,
        "finetune",
        "run_finetune",
        help="learn a target task with compatible parts, beside the usual way",
        description="Learn a target task from a compatible head and extractor, with a head trained on a cheap "
        "extractor, or with adapters on frozen backbones (sections of the recipe), and measure accuracy against "
        "steps, seconds, floating-point operations and memory beside the usual way.",
    )

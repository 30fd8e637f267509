"""Commands that run a recipe: their options, and the experiments among them."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

# The recipe that a command reads, by its name in timm_compat.experiments.
RECIPES = {
    "train": "Recipe",
    "adapt": "AdaptRecipe",
    "transfer": "ClassifierTransferRecipe",
    "finetune": "FinetuneRecipe",
}


def kind_of(command: str) -> type[Any]:
    """The model of the recipes that a command reads."""
    from timm_compat import experiments

    kind: type[Any] = getattr(experiments, RECIPES[command])
    return kind


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """The recipe, changes to it, and where results go."""
    parser.add_argument("recipe", type=Path, help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as training.epochs=5")
    parser.add_argument("--output", metavar="DIR", help="a new folder, in place of the recipe's output_dir")
    parser.add_argument("--resume", action="store_true", help="go on with what the folder holds")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def add_experiment(commands: Any, command: str, function: str, **texts: str) -> None:
    """Add the command of an experiment.

    Args:
        commands: the parser's.
        command: its name.
        function: that runs a recipe, by its name in ``timm_compat.experiments``.
        **texts: ``help`` and ``description`` of the command.
    """
    parser = commands.add_parser(command, **texts)
    add_recipe_options(parser)
    parser.set_defaults(run=partial(run_experiment, command, function))


def run_experiment(command: str, function: str, options: argparse.Namespace) -> None:
    """Read a recipe, run it and print what came out.

    Raises:
        CompatError: any of ours.
    """
    from timm_compat import experiments
    from timm_compat.recipes.reader import read_as

    output = [] if options.output is None else [f"output_dir={json.dumps(options.output, ensure_ascii=False)}"]
    recipe = read_as(kind_of(command), options.recipe, [*options.overrides, *output])
    result = getattr(experiments, function)(recipe, resume=options.resume)
    print(json.dumps(result.summary()) if options.json else result.report())

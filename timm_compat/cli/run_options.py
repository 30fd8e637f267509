"""Options of the commands that run a recipe."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from timm_compat.recipes.reader import read_as
from timm_compat.recipes.trials import TrialsRecipe

Kind = TypeVar("Kind", bound=TrialsRecipe)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The recipe, changes to it, and where results go."""
    parser.add_argument("recipe", type=Path, help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as training.epochs=5")
    parser.add_argument("--output", metavar="DIR", help="a new folder, in place of the recipe's output_dir")
    parser.add_argument("--resume", action="store_true", help="go on with what the folder holds")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def add_run_command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], **texts: str) -> None:
    """A command that runs a recipe.

    Args:
        commands: the parser's.
        name: of the command.
        run: runs it.
        **texts: help and description.
    """
    parser = commands.add_parser(name, **texts)
    add_run_options(parser)
    parser.set_defaults(run=run)


def chosen_recipe(kind: type[Kind], options: argparse.Namespace) -> Kind:
    """The recipe that the options name, of an application's kind.

    Raises:
        ConfigError: a mistake in it.
    """
    recipe = read_as(kind, options.recipe, options.overrides)
    return recipe if options.output is None else replace(recipe, output_dir=options.output)

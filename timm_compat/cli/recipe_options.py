"""Commands that run a recipe of an application: their options, and what they print."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from timm_compat.recipes.reader import read_as
from timm_compat.recipes.trials import TrialsRecipe

Kind = TypeVar("Kind", bound=TrialsRecipe)


class Result(Protocol):
    """What an application gives."""

    def summary(self) -> dict[str, Any]:
        """The figures as JSON values."""


Given = TypeVar("Given", bound=Result)


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """The recipe, changes to it, and where results go."""
    parser.add_argument("recipe", type=Path, help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as training.epochs=5")
    parser.add_argument("--output", metavar="DIR", help="a new folder, in place of the recipe's output_dir")
    parser.add_argument("--resume", action="store_true", help="go on with what the folder holds")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def add_run_command(
    commands: Any,
    name: str,
    kind: type[Kind],
    execute: Callable[..., Given],
    report: Callable[[Given], str],
    **texts: str,
) -> None:
    """A command that reads a recipe, runs it and prints what came out.

    Args:
        commands: the parser's.
        name: of the command.
        kind: of the recipe.
        execute: takes the recipe, and ``resume``.
        report: the result as text.
        **texts: help and description.
    """

    def run(options: argparse.Namespace) -> None:
        result = execute(_chosen(kind, options), resume=options.resume)
        print(json.dumps(result.summary()) if options.json else report(result))

    parser = commands.add_parser(name, **texts)
    add_recipe_options(parser)
    parser.set_defaults(run=run)


def _chosen(kind: type[Kind], options: argparse.Namespace) -> Kind:
    recipe = read_as(kind, options.recipe, options.overrides)
    return recipe if options.output is None else replace(recipe, output_dir=options.output)

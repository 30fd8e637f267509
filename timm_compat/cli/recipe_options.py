"""Commands that run a recipe of an application: their options, and what they print."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar


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


def run_application(
    options: argparse.Namespace,
    kind: type[Any],
    execute: Callable[..., Given],
    report: Callable[[Given], str],
) -> None:
    """Read a recipe, run it and print what came out.

    Args:
        options: those of ``add_recipe_options``.
        kind: of the recipe.
        execute: takes the recipe, and ``resume``.
        report: the result as text.

    Raises:
        CompatError: any of ours.
    """
    from timm_compat.recipes.reader import read_as

    output = [] if options.output is None else [f"output_dir={json.dumps(options.output, ensure_ascii=False)}"]
    result = execute(read_as(kind, options.recipe, [*options.overrides, *output]), resume=options.resume)
    print(json.dumps(result.summary()) if options.json else report(result))

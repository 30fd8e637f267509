"""``timm-compat train`` and ``timm-compat add``: run a recipe."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from timm_compat.cli.recipe_options import add_recipe_options
from timm_compat.errors import ConfigError

if TYPE_CHECKING:
    from timm_compat.experiments.recipe_run import RecipeResult
    from timm_compat.recipes.schema import Recipe


def add_parser(commands: Any) -> None:
    """Add both commands to the parser's commands."""
    train = commands.add_parser(
        "train",
        help="train the members of a recipe in one space",
        description="Train the members of a recipe (YAML) in one space, then measure every extractor under every head. "
        "The same line runs on several GPUs: accelerate launch -m timm_compat train RECIPE",
    )
    add = commands.add_parser(
        "add",
        help="train new members of a recipe for an existing space",
        description="Train new members for an existing space (space.folder in the recipe, or --space). Its shared "
        "parts stay frozen and its components untouched: the new parts fit the old ones.",
    )
    add.add_argument("--space", metavar="ID|DIR", help="the space, a Hub id or a folder, in place of the recipe's")
    for parser in (train, add):
        add_recipe_options(parser)
    train.set_defaults(run=run, space=None, adds=False)
    add.set_defaults(run=run, adds=True)


def run(options: argparse.Namespace) -> None:
    """Run either command.

    Raises:
        CompatError: any of ours.
    """
    from timm_compat.experiments.recipe_run import run_recipe
    from timm_compat.recipes.reader import read_recipe

    overrides = list(options.overrides)
    if options.space is not None:
        overrides.append(f"space={json.dumps({'folder': options.space}, ensure_ascii=False)}")
    if options.output is not None:
        overrides.append(f"training.output_dir={json.dumps(options.output, ensure_ascii=False)}")
    recipe = read_recipe(options.recipe, overrides)
    if options.adds and recipe.space.folder is None:
        raise ConfigError(
            "space.folder: expected an existing space to add to, got a new one; use train, or --space DIR"
        )
    result = run_recipe(recipe, resume=options.resume)
    if _is_main_process():
        print(json.dumps(result.summary()) if options.json else _report(result, recipe))


def _is_main_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _report(result: "RecipeResult", recipe: "Recipe") -> str:
    space, config = result.built.space, result.built.recipe.training
    lines = []
    if result.matrix is not None:
        lines += [
            "Accuracy on test images; bold: an extractor under its own head.",
            "",
            result.matrix.to_markdown(),
            "",
        ]
    lines.append(f"{config.epochs} epochs in {result.fit.seconds:.0f} s   loss {result.fit.history[-1]['loss']:.3f}")
    if space.is_final:
        lines.append(f"Space {space.fingerprint}")
    else:
        lines.append("The space is a draft: nothing pins its coordinates, so no component was written")
    lines.append(
        f"Components, log and checkpoints: {config.output_dir}"
        if config.output_dir is not None
        else "Nothing was kept: give --output DIR"
    )
    return "\n".join(lines)

"""The commands that run a recipe, ``train``, ``add``, ``adapt``, ``transfer`` and ``finetune``, and its ``schema``."""

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from timm_compat.cli.options import add_recipe_options
from timm_compat.errors import ConfigError

if TYPE_CHECKING:
    from timm_compat.experiments.recipe_run import RecipeResult
    from timm_compat.recipes.schema import Recipe

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


def add_parser(commands: Any) -> None:
    """Add these commands to the parser's commands."""
    _add_train(commands)
    _add_experiment(
        commands,
        command="adapt",
        function="run_adaptation",
        help="adapt a classifier to images of another domain, without their labels",
        description="Adapt a classifier from labelled source images to unlabelled target images in every mode that the "
        "recipe (YAML) names, measure each over several seeds, and choose one by the unlabelled images alone.",
    )
    _add_experiment(
        commands,
        command="transfer",
        function="run_classifier_transfer",
        help="put heads on other architectures, or on a new extractor that replaces an old one",
        description="Measure heads on extractors that they were not trained with, over several seeds: exchanged "
        "between architectures (transfer in the recipe), or kept while a new extractor replaces an old one (upgrade).",
    )
    _add_experiment(
        commands,
        command="finetune",
        function="run_finetune",
        help="learn a target task from compatible parts, compared with the usual ways",
        description="Learn a target task from a compatible head and extractor, with a head trained on a cheap "
        "extractor, or with adapters on frozen backbones (sections of the recipe), and compare accuracy over steps, "
        "seconds, floating-point operations and memory with the usual ways.",
    )
    _add_schema(commands)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train the members of a recipe in one space",
        description="Train the members of a recipe (YAML) in one space, then measure every extractor under every head. "
        "On several GPUs: accelerate launch -m timm_compat train RECIPE",
    )
    add = commands.add_parser(
        "add",
        help="train new members of a recipe for an existing space",
        description="Train new members for an existing space (space.folder in the recipe, or --space). Its shared "
        "parts stay frozen and its components unchanged: the new components fit the old ones.",
    )
    add.add_argument(
        "--space", metavar="ID|DIR", help="the space to add to, a Hub id or a folder, in place of the recipe's"
    )
    for parser in (train, add):
        add_recipe_options(parser)
    train.set_defaults(run=run_train, space=None, adds=False)
    add.set_defaults(run=run_train, adds=True)


def _add_experiment(commands: Any, command: str, function: str, **texts: str) -> None:
    """Add the command of an experiment, which a function of ``timm_compat.experiments`` runs."""
    parser = commands.add_parser(command, **texts)
    add_recipe_options(parser)
    parser.set_defaults(run=partial(run_experiment, command, function))


def _add_schema(commands: Any) -> None:
    parser = commands.add_parser(
        "schema",
        help="print the JSON schema of a command's recipes",
        description="Print the JSON schema of a command's recipes. Save it as FILE, and editors complete and check a "
        "recipe that begins with the line: # yaml-language-server: $schema=FILE",
    )
    parser.add_argument(
        "command", choices=list(RECIPES), help="the command that reads the recipe (add reads the recipes of train)"
    )
    parser.set_defaults(run=run_schema)


def run_train(options: argparse.Namespace) -> None:
    """Run ``train`` or ``add``.

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
    recipe: Recipe = read_recipe(kind_of("train"), options.recipe, overrides)
    if options.adds and recipe.space.folder is None:
        raise ConfigError(
            "space.folder: expected an existing space to add to, got a new one; use train, or --space DIR"
        )
    result = run_recipe(recipe, resume=options.resume)
    if _is_main_process():
        print(json.dumps(result.summary()) if options.json else _report(result, recipe))


def run_experiment(command: str, function: str, options: argparse.Namespace) -> None:
    """Run the recipe of an experiment and print what came out.

    Raises:
        CompatError: any of ours.
    """
    from timm_compat import experiments
    from timm_compat.recipes.reader import read_recipe

    output = [] if options.output is None else [f"output_dir={json.dumps(options.output, ensure_ascii=False)}"]
    recipe = read_recipe(kind_of(command), options.recipe, [*options.overrides, *output])
    result = getattr(experiments, function)(recipe, resume=options.resume)
    print(json.dumps(result.summary()) if options.json else result.report())


def run_schema(options: argparse.Namespace) -> None:
    """Print the schema."""
    from timm_compat.recipes.reference import json_schema

    print(json.dumps(json_schema(kind_of(options.command)), indent=2))


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

"""Whole tasks that a practitioner runs: a recipe in; tables, figures, pictures and components out.

Example:
    >>> from timm_compat import experiments
    >>> digits = {"dataset": "digits", "limit": 100}
    >>> domain = {"train": digits, "test": {**digits, "split": "test"}}
    >>> recipe = experiments.AdaptRecipe(
    ...     source=domain, target={**domain, "shift": ["inverted"]}, backbone="test_resnet", img_size=16,
    ...     modes=["source_only", "batchnorm"], training={"epochs": 1},
    ... )
    >>> result = experiments.run_adaptation(recipe, progress=False)
    >>> list(result.figures["modes"])
    ['source_only', 'batchnorm', 'selected']
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm_compat.experiments.adapt.recipe import AdaptRecipe
    from timm_compat.experiments.adapt.run import AdaptResult, run_adaptation
    from timm_compat.experiments.finetune.recipe import FinetuneRecipe
    from timm_compat.experiments.finetune.run import FinetuneResult, run_finetune
    from timm_compat.experiments.recipe_run import RecipeResult, run_recipe
    from timm_compat.experiments.result import ExperimentResult
    from timm_compat.experiments.transfer.recipe import ClassifierTransferRecipe
    from timm_compat.experiments.transfer.run import ClassifierTransferResult, run_classifier_transfer
    from timm_compat.recipes.reader import read_as as read_recipe
    from timm_compat.recipes.schema import Recipe

__all__ = [
    "AdaptRecipe",
    "AdaptResult",
    "ClassifierTransferRecipe",
    "ClassifierTransferResult",
    "ExperimentResult",
    "FinetuneRecipe",
    "FinetuneResult",
    "Recipe",
    "RecipeResult",
    "read_recipe",
    "run_adaptation",
    "run_classifier_transfer",
    "run_finetune",
    "run_recipe",
]

# Loaded when asked for: recipes need pydantic, and trainings Accelerate.
_HOMES = {
    "AdaptRecipe": "experiments.adapt.recipe.AdaptRecipe",
    "AdaptResult": "experiments.adapt.run.AdaptResult",
    "ClassifierTransferRecipe": "experiments.transfer.recipe.ClassifierTransferRecipe",
    "ClassifierTransferResult": "experiments.transfer.run.ClassifierTransferResult",
    "ExperimentResult": "experiments.result.ExperimentResult",
    "FinetuneRecipe": "experiments.finetune.recipe.FinetuneRecipe",
    "FinetuneResult": "experiments.finetune.run.FinetuneResult",
    "Recipe": "recipes.schema.Recipe",
    "RecipeResult": "experiments.recipe_run.RecipeResult",
    "read_recipe": "recipes.reader.read_as",
    "run_adaptation": "experiments.adapt.run.run_adaptation",
    "run_classifier_transfer": "experiments.transfer.run.run_classifier_transfer",
    "run_finetune": "experiments.finetune.run.run_finetune",
    "run_recipe": "experiments.recipe_run.run_recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(importlib.import_module(f"timm_compat.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Runs that a recipe describes; they give tables, figures, pictures and components."""

from typing import TYPE_CHECKING

from timm_compat._lazy import attach

if TYPE_CHECKING:
    from timm_compat.experiments.adapt.recipe import AdaptRecipe as AdaptRecipe
    from timm_compat.experiments.adapt.run import AdaptResult as AdaptResult
    from timm_compat.experiments.adapt.run import run_adaptation as run_adaptation
    from timm_compat.experiments.build import read_recipe as read_recipe
    from timm_compat.experiments.finetune.recipe import FinetuneRecipe as FinetuneRecipe
    from timm_compat.experiments.finetune.run import FinetuneResult as FinetuneResult
    from timm_compat.experiments.finetune.run import run_finetune as run_finetune
    from timm_compat.experiments.recipe_run import RecipeResult as RecipeResult
    from timm_compat.experiments.recipe_run import run_recipe as run_recipe
    from timm_compat.experiments.result import ExperimentResult as ExperimentResult
    from timm_compat.experiments.transfer.recipe import ClassifierTransferRecipe as ClassifierTransferRecipe
    from timm_compat.experiments.transfer.run import ClassifierTransferResult as ClassifierTransferResult
    from timm_compat.experiments.transfer.run import run_classifier_transfer as run_classifier_transfer
    from timm_compat.recipes.schema import Recipe as Recipe

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "adapt.recipe": ["AdaptRecipe"],
        "adapt.run": ["AdaptResult", "run_adaptation"],
        "build": ["Recipe", "read_recipe"],
        "finetune.recipe": ["FinetuneRecipe"],
        "finetune.run": ["FinetuneResult", "run_finetune"],
        "recipe_run": ["RecipeResult", "run_recipe"],
        "result": ["ExperimentResult"],
        "transfer.recipe": ["ClassifierTransferRecipe"],
        "transfer.run": ["ClassifierTransferResult", "run_classifier_transfer"],
    },
)

"""Run a recipe: train its members, measure every extractor under every head, save the results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timm_compat.evaluation.matrix import RecombinationMatrix
from timm_compat.experiments.build import Built, build
from timm_compat.recipes.schema import Recipe
from timm_compat.recipes.writer import recipe_to_text
from timm_compat.storage.files import replace_text
from timm_compat.training.fit import FitResult, check_output, fit

RECIPE_FILE, MATRIX_FILE = "recipe.yaml", "matrix.json"


@dataclass(frozen=True)
class RecipeResult:
    """The result of a recipe.

    Attributes:
        built: the trained members, their space and their data.
        fit: history and seconds.
        matrix: every extractor under every head that has test images; None without any.
    """

    built: Built
    fit: FitResult
    matrix: RecombinationMatrix | None

    def summary(self) -> dict[str, Any]:
        """The figures as JSON values."""
        space, matrix = self.built.space, self.matrix
        return {
            "space": space.fingerprint if space.is_final else None,
            "output": self.built.recipe.training.output_dir,
            "seconds": self.fit.seconds,
            "losses": {name: value for name, value in self.fit.history[-1].items() if "/" in name or name == "loss"},
            "native": None if matrix is None else _number(matrix.native_accuracy),
            "recombined": None if matrix is None else _number(matrix.recombined_accuracy),
            "matrix": None if matrix is None else matrix.to_dict(),
        }


def run_recipe(recipe: Recipe, *, resume: bool = False, progress: str | None = "training") -> RecipeResult:
    """Train and measure; ``output_dir`` gets components, checkpoints, log, the resolved recipe and the matrix.

    Args:
        recipe: what to train. ``training.best_metric`` may be "native" or "recombined", measured on the members'
            validation images; test images are not used for any choice.
        resume: continue from the newest checkpoint.
        progress: label of the progress bar; no bar if None.

    Raises:
        CompatError: any of ours.

    Example:
        >>> digits = {"dataset": "digits", "limit": 50}
        >>> member = {"name": "a", "backbone": "test_resnet", "img_size": 16, "data": digits, "test": digits}
        >>> recipe = tc.experiments.Recipe(space={}, members=[member], training={"epochs": 1})
        >>> tc.experiments.run_recipe(recipe, progress=None).matrix.rows
        ('a',)
    """
    check_output(recipe.training, resume)  # before data and pretrained weights are fetched
    built = build(recipe)
    config = built.recipe.training
    fitted = fit(
        built.space,
        built.members,
        config,
        reference=built.reference,
        pool=built.pool,
        validate=built.validate if built.validations else None,
        resume=resume,
        progress=progress,
    )
    matrix = built.matrix(built.tests) if recipe.evaluate else None
    if config.output_dir is not None:
        replace_text(Path(config.output_dir) / RECIPE_FILE, recipe_to_text(built.recipe))
        if matrix is not None:
            replace_text(Path(config.output_dir) / MATRIX_FILE, json.dumps(matrix.to_dict(), indent=2) + "\n")
    return RecipeResult(built, fitted, matrix)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value

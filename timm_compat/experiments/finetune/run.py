"""Transfer learning as an experiment: what is measured for a seed, and what its result shows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from timm_compat.experiments.engine import Experiment, run_experiment
from timm_compat.experiments.finetune.cost import Curve
from timm_compat.experiments.finetune.learning import read_target
from timm_compat.experiments.finetune.recipe import FinetuneRecipe
from timm_compat.experiments.finetune.sections import ADAPTERS, NEW_HEAD, START, WHOLE, Way, ways
from timm_compat.experiments.finetune.sources import find_networks
from timm_compat.experiments.finetune.tables import TITLES, Ways, figures, level_table, picture, section_table
from timm_compat.experiments.result import ExperimentResult, Record

PICTURE_FILE = "curves.png"


@dataclass(frozen=True)
class FinetuneResult(ExperimentResult):
    """What a target task cost to learn.

    Attributes:
        recipe: what was run.
        figures: by section of the recipe and way, one curve a seed as JSON values.
    """

    recipe: FinetuneRecipe
    about = "Accuracy on the target's test images"

    @cached_property
    def curves(self) -> dict[str, Ways]:
        """Accuracy against cost by section and way, one curve a seed."""
        return {
            section: {way: [Curve.from_dict(record) for record in records] for way, records in named.items()}
            for section, named in self.figures.items()
        }

    def tables(self) -> dict[str, str]:
        """One a section, and one of the steps to given accuracies."""
        found = {TITLES[section]: section_table(section, named) for section, named in self.curves.items()}
        if self.recipe.start is not None and self.recipe.start.levels:
            found["Steps to an accuracy"] = level_table(self.curves[START], self.recipe.start.levels)
        return found

    def numbers(self) -> dict[str, Any]:
        """JSON values by section."""
        return {section: figures(section, named) for section, named in self.curves.items()}

    def pictures(self) -> dict[str, Any]:
        """The curves."""
        return {PICTURE_FILE: picture(self.curves)}


def run_finetune(recipe: FinetuneRecipe, *, resume: bool = False, progress: bool = True) -> FinetuneResult:
    """Train and measure; what is measured already is not measured again.

    Args:
        recipe: what to run.
        resume: go on with what ``output_dir`` holds. A training on the target that was interrupted starts again, so
            that its seconds are those of one run; that of the sources goes on.
        progress: whether trainings show a bar.

    Raises:
        CompatError: any of ours.

    Example:
        >>> digits = {"dataset": "digits", "limit": 50}
        >>> member = {"name": "a", "backbone": "test_resnet", "img_size": 16, "data": digits}
        >>> recipe = tc.experiments.FinetuneRecipe(
        ...     target={"train": digits, "test": digits}, adapters={"extractor": "a"}, training={"epochs": 1},
        ...     source={"space": {}, "members": [member], "training": {"epochs": 1}}, frozen_training={"epochs": 1},
        ... )
        >>> list(tc.experiments.run_finetune(recipe, progress=False).curves["adapters"])
        ['whole network', 'adapter', 'head alone']
    """
    return run_experiment(recipe, FinetuneResult, _prepare, resume=resume, progress=progress)


def _prepare(experiment: Experiment, recipe: FinetuneRecipe) -> Callable[[int], dict[str, dict[str, Record]]]:
    start, adapters = recipe.start, recipe.adapters
    # The usual way of two sections is one and the same training where they start from one extractor.
    shared = start is not None and adapters is not None and start.extractor == adapters.extractor

    def measure(seed: int) -> dict[str, dict[str, Record]]:
        target, found = read_target(recipe.target, seed), dict[str, dict[str, Record]]()
        networks = find_networks(recipe, seed, experiment, target)
        for section, named in ways(recipe, seed, target, networks, experiment.features.folder).items():
            for name, way in named.items():
                if shared and (section, name) == (ADAPTERS, WHOLE):
                    record = found[START][NEW_HEAD]
                else:
                    file = f"seed{seed}-{section}-{name.replace(',', '').replace(' ', '_')}"
                    record = _record(experiment, file, way, recipe)
                found.setdefault(section, {})[name] = record
        return found

    return measure


def _record(experiment: Experiment, name: str, way: Way, recipe: FinetuneRecipe) -> Record:
    def measure() -> dict[str, Any]:
        learned = way(name if experiment.progress else None)
        accuracy = learned.curve.accuracy[-1]
        experiment.keep_target(name, learned.extractor, learned.head, recipe.target.test, accuracy)
        return learned.curve.to_dict()

    found: Record = experiment.result(name, measure)
    return found

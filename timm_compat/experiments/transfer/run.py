"""Transfers and upgrades as an experiment: what is measured for a seed, and what its result shows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm_compat.evaluation.seeds import MatrixOverSeeds
from timm_compat.experiments.engine import Experiment, run_experiment
from timm_compat.experiments.result import ExperimentResult, Record
from timm_compat.experiments.transfer import tables
from timm_compat.experiments.transfer.exchange import Exchange
from timm_compat.experiments.transfer.networks import reader
from timm_compat.experiments.transfer.recipe import ClassifierTransferRecipe
from timm_compat.experiments.transfer.upgrade import Upgrade

TRANSFER, UPGRADE = "transfer", "upgrade"
MEASURED: dict[str, type[Exchange] | type[Upgrade]] = {TRANSFER: Exchange, UPGRADE: Upgrade}
SHOWN = {TRANSFER: tables.TRANSFER, UPGRADE: tables.UPGRADE}


@dataclass(frozen=True)
class ClassifierTransferResult(ExperimentResult):
    """What a transfer of classifiers gave.

    Attributes:
        recipe: what was run.
        figures: under "transfer" (heads on other architectures) and "upgrade" (old heads on a new extractor), where the
            recipe asks for them, by way one record a seed.
    """

    recipe: ClassifierTransferRecipe
    about = "Accuracy, differences in points of it"

    def matrix(self, way: str) -> MatrixOverSeeds:
        """Every extractor under every head, of one way of the transfer."""
        return tables.matrix_of(self.figures[TRANSFER][way])

    def values(self, way: str, column: str) -> list[float]:
        """One number a seed of a way to upgrade; those that could not be had are left out.

        Args:
            way: one of the recipe's.
            column: an old head's name for the accuracy of the new extractor under it; "cross" for their mean, "gain"
                (update gain over all old heads), "gain NAME" of one, "flips", "own", "own_new_classes", "own_flips",
                "cost", "labels" or "seconds".
        """
        return tables.values_of(self.figures[UPGRADE][way], column)

    def tables(self) -> dict[str, str]:
        """By part a table of the ways, and what it rests on."""
        found = [SHOWN[part].tables(ways) for part, ways in self.figures.items()]
        return {title: table for some in found for title, table in some.items()}

    def notes(self) -> list[str]:
        """Each part in one line."""
        return [SHOWN[part].note(ways) for part, ways in self.figures.items()]

    def numbers(self) -> dict[str, Any]:
        """JSON values by part."""
        return {**dict.fromkeys(SHOWN), **{part: SHOWN[part].numbers(ways) for part, ways in self.figures.items()}}

    def pictures(self) -> dict[str, Any]:
        """One of each part."""
        return {f"{part}.png": SHOWN[part].picture(ways) for part, ways in self.figures.items()}


def run_classifier_transfer(
    recipe: ClassifierTransferRecipe, *, resume: bool = False, progress: bool = True
) -> ClassifierTransferResult:
    """Train and measure every seed; ``output_dir`` gets results, tables, pictures, components and checkpoints.

    Args:
        recipe: what to run.
        resume: go on with what the folder holds: finished results are kept, interrupted trainings go on.
        progress: whether trainings show a bar.

    Raises:
        CompatError: any of ours; what is wrong with the data is said before anything is trained.

    Example:
        >>> digits = {"dataset": "digits", "limit": 50}
        >>> form = {"img_size": 16, "arguments": {"in_chans": 1}, "data": digits, "test": digits}
        >>> networks = [{"name": name, "backbone": f"test_{name}", **form} for name in ("vit", "resnet")]
        >>> transfer = {"networks": networks, "ways": ["apart", "joined"]}
        >>> recipe = tc.experiments.ClassifierTransferRecipe(transfer=transfer, training={"epochs": 1})
        >>> tc.experiments.run_classifier_transfer(recipe, progress=False).matrix("joined").mean.shape
        (2, 2)
    """
    return run_experiment(recipe, ClassifierTransferResult, _prepare, resume=resume, progress=progress)


def _prepare(
    experiment: Experiment, recipe: ClassifierTransferRecipe
) -> Callable[[int], dict[str, Mapping[str, Record]]]:
    def measure(seed: int) -> dict[str, Mapping[str, Record]]:
        read, asked = reader(seed), [part for part in MEASURED if getattr(recipe, part) is not None]
        parts = {name: MEASURED[name](recipe, seed, read) for name in asked}
        kept = {
            name: experiment.result(f"{name}-seed{seed}", partial(part.measure, experiment))
            for name, part in parts.items()
        }
        return {name: _by_way(found) for name, found in kept.items()}

    return measure


def _by_way(kept: Mapping[str, Any]) -> Mapping[str, Record]:
    """The file of a transfer holds ways; that of an upgrade has beside them what none of them changes."""
    if "ways" not in kept:
        return kept
    shared = {"old": kept["old"], "ceiling": kept["ceiling"], "alone": kept["own"]}
    return {way: {**found, **shared} for way, found in kept["ways"].items()}

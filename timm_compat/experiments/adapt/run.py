"""Adaptation as an experiment: what is measured for a seed, and what its result shows."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm_compat.evaluation.plots import bars
from timm_compat.experiments.adapt.domains import read_domains, read_given
from timm_compat.experiments.adapt.modes import SeedRun
from timm_compat.experiments.adapt.recipe import MODES, AdaptRecipe
from timm_compat.experiments.adapt.selection import TARGET, choose, regret
from timm_compat.experiments.engine import Experiment, run_experiment
from timm_compat.experiments.result import ExperimentResult, Record, way_table
from timm_compat.table import spread_text

PART, SELECTED, SUPERVISED = "modes", "selected", "target_supervised"
PICTURE_FILE = "adaptation.png"
# Column by key of a record.
COLUMNS = {
    "target": "target accuracy",
    "source": "source accuracy",
    "information": "information",
    "regret": "below the best epoch",
}


@dataclass(frozen=True)
class AdaptResult(ExperimentResult):
    """What an adaptation gave.

    Attributes:
        recipe: that was run.
        figures: under "modes", by mode one record a seed: accuracies "target" and "source" in [0, 1], "information"
            and "confidence" in nats, "regret" in accuracy; None where not measured. Last comes "selected", the mode
            that the unlabelled images chose.
    """

    recipe: AdaptRecipe
    about = "Accuracy in both domains, information in nats"

    @property
    def selected(self) -> tuple[str, ...]:
        """The chosen mode of every seed."""
        return tuple(record["mode"] for record in self.figures[PART][SELECTED])

    def values(self, mode: str, key: str) -> list[float]:
        """One number a seed, without those that were not measured."""
        return _values(key, self.figures[PART][mode])

    def tables(self) -> dict[str, str]:
        """One table, a row a mode."""
        modes = self.figures[PART]
        known = {key: title for key, title in COLUMNS.items() if any(self.values(mode, key) for mode in modes)}
        columns = {title: partial(_spread, key) for key, title in known.items()}
        return {"Modes of adaptation": way_table("mode", modes, columns)}

    def notes(self) -> list[str]:
        """What each mode is."""
        explained = {mode: MODES[mode] for mode in self.recipe.chosen_modes}
        explained[SELECTED] = f"what unlabelled target images choose by {self.recipe.select}: " + ", ".join(
            f"{mode} ({count} of {len(self.selected)})" for mode, count in Counter(self.selected).items()
        )
        return ["\n".join(f"- {mode}: {text}" for mode, text in explained.items())]

    def numbers(self) -> dict[str, Any]:
        """JSON values."""
        figures = {mode: [dict(record) for record in records] for mode, records in self.figures[PART].items()}
        return {"select": self.recipe.select, "selected": list(self.selected), "figures": figures}

    def pictures(self) -> dict[str, Any]:
        """Bars, where the target has test images."""
        return {PICTURE_FILE: self.plot()[0]} if self.values(SELECTED, TARGET) else {}

    def plot(self, ax: Any = None, title: str = "") -> tuple[Any, Any]:
        """Target accuracy by mode with one standard deviation over seeds; returns figure and axis.

        Raises:
            DataError: the target has no test images.
            MissingExtraError: Matplotlib is not installed.
        """
        values = {mode: found for mode in self.figures[PART] if (found := self.values(mode, TARGET))}
        means = {mode: statistics.fmean(found) for mode, found in values.items()}
        spreads = {mode: statistics.stdev(found) if len(found) > 1 else 0.0 for mode, found in values.items()}
        intervals = {mode: (means[mode] - spreads[mode], means[mode] + spreads[mode]) for mode in means}
        return bars(means, intervals=intervals, ylabel="target accuracy", title=title, ax=ax)


def run_adaptation(recipe: AdaptRecipe, *, resume: bool = False, progress: bool = True) -> AdaptResult:
    """Train and measure every mode for every seed.

    ``output_dir`` gets the recipe, results, trainings, tables, a picture and, in ``components/seedN``, the space,
    target extractor and source head of the chosen mode.

    Args:
        recipe: what to run.
        resume: go on with what the folder holds.
        progress: whether trainings show a bar.

    Raises:
        CompatError: any of ours.

    Example:
        >>> digits = {"train": {"dataset": "digits", "limit": 50}, "test": {"dataset": "digits", "limit": 50}}
        >>> recipe = tc.experiments.AdaptRecipe(
        ...     source=digits, target={**digits, "shift": ["inverted"]}, backbone="test_resnet", img_size=16,
        ...     modes=["source_only", "batchnorm"], training={"epochs": 1},
        ... )
        >>> result = tc.experiments.run_adaptation(recipe, progress=False)
        >>> list(result.figures["modes"])
        ['source_only', 'batchnorm', 'selected']
    """
    return run_experiment(recipe, AdaptResult, _prepare, resume=resume, progress=progress)


def _prepare(experiment: Experiment, recipe: AdaptRecipe) -> Callable[[int], dict[str, dict[str, Record]]]:
    given = read_given(recipe)

    def measure(seed: int) -> dict[str, dict[str, Record]]:
        run = SeedRun(recipe, read_domains(recipe, seed, given), experiment, seed, given)
        found = {mode: run.result(mode) for mode in recipe.chosen_modes}
        chosen = _chosen(recipe, found)
        _keep(experiment, run, chosen)
        return {PART: {**found, SELECTED: chosen}}

    return measure


def _chosen(recipe: AdaptRecipe, found: Mapping[str, Record]) -> Record:
    """The record of the mode that unlabelled target images choose; its regret is that of this choice."""
    modes = [mode for mode in found if mode != SUPERVISED] or list(found)
    candidates = [found[mode] for mode in modes]
    index = choose(candidates, recipe.select)
    return {**candidates[index], "regret": regret(candidates, recipe.select), "mode": modes[index]}


def _keep(experiment: Experiment, run: SeedRun, chosen: Record) -> None:
    name, recipe = f"seed{run.seed}", run.recipe
    if experiment.keeps(f"{name}/head-{TARGET}"):  # the last one that is written
        return
    made = run.adapted(chosen["mode"])
    source, target = recipe.source.train.dataset, recipe.target.train.dataset
    how = {"adaptation": chosen["mode"], "source": source, "target": target, "seed": run.seed}
    experiment.keep_target(name, made.extractor, made.head, recipe.target.test, chosen[TARGET], **how)


def _values(key: str, records: Any) -> list[float]:
    return [record[key] for record in records if record.get(key) is not None]


def _spread(key: str, records: Any) -> str:
    return spread_text(_values(key, records))

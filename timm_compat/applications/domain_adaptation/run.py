"""Run an adaptation over its seeds, and say what came out: table, picture, components."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm_compat._extras import require
from timm_compat.applications.domain_adaptation.domains import read_domains
from timm_compat.applications.domain_adaptation.given import check_given, read_given
from timm_compat.applications.domain_adaptation.modes import TARGET, SeedRun
from timm_compat.applications.domain_adaptation.recipe import AdaptRecipe
from timm_compat.applications.domain_adaptation.selection import choose, regret
from timm_compat.applications.trials import Trials
from timm_compat.errors import MissingExtraError
from timm_compat.evaluation.plots import bars
from timm_compat.storage.facts import Result
from timm_compat.storage.files import writing
from timm_compat.table import spread_table
from timm_compat.training.fit import save_members

SELECTED = "selected"
SUPERVISED = "target_supervised"
COMPONENTS = "adapted"
PICTURE_FILE = "adaptation.png"
# Column by key of a result.
COLUMNS = {
    "target": "target accuracy",
    "source": "source accuracy",
    "information": "information",
    "regret": "below the best epoch",
}

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation gave.

    Attributes:
        recipe: that was run.
        figures: by mode one record a seed, in the order of the seeds: accuracies "target" and "source" in [0, 1],
            "information" and "confidence" in nats, "regret" in accuracy; None where not measured. Last comes
            "selected", the mode that the unlabelled images chose.
        selected: the chosen mode of every seed.
    """

    recipe: AdaptRecipe
    figures: Mapping[str, Sequence[Figures]]
    selected: tuple[str, ...]

    def values(self, mode: str, key: str) -> list[float]:
        """One number a seed, without those that were not measured."""
        return [record[key] for record in self.figures[mode] if record.get(key) is not None]

    def to_markdown(self) -> str:
        """Mean ± standard deviation over seeds."""
        columns = {key: title for key, title in COLUMNS.items() if any(self.values(mode, key) for mode in self.figures)}
        rows = {mode: {title: self.values(mode, key) for key, title in columns.items()} for mode in self.figures}
        return spread_table("mode", rows)

    def plot(self, ax: Any = None, title: str = "") -> tuple[Any, Any]:
        """Target accuracy by mode with one standard deviation over seeds; returns figure and axis.

        Raises:
            DataError: the target has no test images.
            MissingExtraError: Matplotlib is not installed.
        """
        values = {mode: self.values(mode, "target") for mode in self.figures if self.values(mode, "target")}
        means = {mode: statistics.fmean(found) for mode, found in values.items()}
        spreads = {mode: statistics.stdev(found) if len(found) > 1 else 0.0 for mode, found in values.items()}
        intervals = {mode: (means[mode] - spreads[mode], means[mode] + spreads[mode]) for mode in means}
        return bars(means, intervals=intervals, ylabel="target accuracy", title=title, ax=ax)

    def summary(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "seeds": list(self.recipe.seeds),
            "select": self.recipe.select,
            "selected": list(self.selected),
            "figures": {mode: [dict(record) for record in records] for mode, records in self.figures.items()},
            "output": self.recipe.output_dir,
        }


def run_adaptation(recipe: AdaptRecipe, *, resume: bool = False, progress: bool = True) -> AdaptResult:
    """Train and measure every mode for every seed.

    ``output_dir`` gets the recipe, results, trainings, a picture and, in ``adapted/seedN``, the space, target
    extractor and source head of the chosen mode.

    Args:
        recipe: what to run.
        resume: go on with what the folder holds.
        progress: whether trainings show a bar.

    Raises:
        CompatError: any of ours.
    """
    trials, given = Trials(recipe, resume=resume, progress=progress), read_given(recipe)
    records: dict[str, list[Figures]] = {mode: [] for mode in recipe.chosen_modes}
    chosen: list[Figures] = []
    for seed in recipe.seeds:
        domains = read_domains(recipe, seed, None if given is None else given.in_chans)
        if given is not None:
            check_given(given, domains, recipe)
        run = SeedRun(recipe, domains, trials, seed, given)
        found = {mode: run.result(mode) for mode in recipe.chosen_modes}
        for mode, record in found.items():
            records[mode].append(record)
        chosen.append(_chosen(recipe, found))
        if trials.folder is not None:
            _keep(trials.folder / COMPONENTS / f"seed{seed}", run, chosen[-1])
    result = AdaptResult(recipe, {**records, SELECTED: chosen}, tuple(record["mode"] for record in chosen))
    if trials.folder is not None:
        _draw(result, trials.folder / PICTURE_FILE)
    return result


def _chosen(recipe: AdaptRecipe, found: Mapping[str, Figures]) -> Figures:
    """The record of the mode that unlabelled target images choose; its regret is that of this choice."""
    modes = [mode for mode in found if mode != SUPERVISED] or list(found)
    candidates = [found[mode] for mode in modes]
    place = choose(candidates, recipe.select)
    return {**candidates[place], "regret": regret(candidates, recipe.select), "mode": modes[place]}


def _keep(folder: Path, run: SeedRun, chosen: Figures) -> None:
    if (folder / f"head-{TARGET}").exists():  # the last one that is written
        return
    made, recipe = run.adapted(chosen["mode"]), run.recipe
    source, target = recipe.source.train.dataset, recipe.target.train.dataset
    how = {"adaptation": chosen["mode"], "source": source, "target": target, "seed": run.seed}
    test, found = recipe.target.test, chosen[TARGET]
    results = () if test is None else (Result(test.dataset, found, test.split),)
    for part in (made.extractor, made.head):
        part.facts = replace(part.facts, training={**part.facts.training, **how}, results=results)
    save_members(folder, made.head.space, {TARGET: (made.extractor, made.head)})


def _draw(result: AdaptResult, file: Path) -> None:
    try:
        plt = require("matplotlib.pyplot", "plots")
    except MissingExtraError:
        return
    if any(result.values(mode, "target") for mode in result.figures):
        figure, _ = result.plot()
        with writing(file):
            figure.savefig(file, dpi=100)
        plt.close(figure)

"""Run a transfer-learning recipe: every training of every section once a seed, then tables and a picture."""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm_compat.errors import MissingExtraError
from timm_compat.experiments.finetune.curve import Curve
from timm_compat.experiments.finetune.networks import find_networks
from timm_compat.experiments.finetune.picture import draw
from timm_compat.experiments.finetune.recipe import FinetuneRecipe
from timm_compat.experiments.finetune.sections import ADAPTERS, NEW_HEAD, START, WHOLE, Learned, Way, ways
from timm_compat.experiments.finetune.summary import Ways, figures, level_table, section_table
from timm_compat.experiments.finetune.target import read_target
from timm_compat.experiments.trials import TRAININGS, Trials
from timm_compat.storage.facts import Result
from timm_compat.storage.files import replace_text
from timm_compat.training.fit import save_members

SUMMARY_FILE, TABLES_FILE, PICTURE_FILE = "summary.json", "tables.md", "curves.png"


@dataclass(frozen=True)
class FinetuneResult:
    """What a recipe gave.

    Attributes:
        recipe: what was run.
        curves: by section, way, one a seed.
    """

    recipe: FinetuneRecipe
    curves: dict[str, Ways]

    def tables(self) -> dict[str, str]:
        """Markdown by section; accuracies in [0, 1], mean ± standard deviation over seeds."""
        found = {section: section_table(section, named) for section, named in self.curves.items()}
        if self.recipe.start is not None and self.recipe.start.levels:
            found[START] += "\n\n" + level_table(self.curves[START], self.recipe.start.levels)
        return found

    def summary(self) -> dict[str, Any]:
        """The figures as JSON values."""
        sections = {section: figures(section, named) for section, named in self.curves.items()}
        return {"seeds": list(self.recipe.seeds), "output": self.recipe.output_dir, **sections}

    def save(self) -> None:
        """Write tables, figures and, where Matplotlib is installed, the picture into the output folder, if any."""
        if self.recipe.output_dir is None:
            return
        folder = Path(self.recipe.output_dir)
        replace_text(folder / SUMMARY_FILE, json.dumps(self.summary(), indent=2) + "\n")
        replace_text(folder / TABLES_FILE, "\n\n".join(self.tables().values()) + "\n")
        with suppress(MissingExtraError):
            draw(self.curves, folder / PICTURE_FILE)


def run_finetune(recipe: FinetuneRecipe, *, resume: bool = False, progress: bool = True) -> FinetuneResult:
    """Train and measure; what is measured already is not measured again.

    Args:
        recipe: what to run.
        resume: go on with what ``output_dir`` holds. A training on the target that was interrupted starts again, so
            that its seconds are those of one run; that of the sources goes on.
        progress: whether trainings show a bar.

    Raises:
        CompatError: any of ours.
    """
    trials = Trials(recipe, resume=resume, progress=progress)
    curves: dict[str, dict[str, list[Curve]]] = {}
    for seed in recipe.seeds:
        target = read_target(recipe.target, seed)
        networks = find_networks(recipe, seed, trials, target)
        for section, named in ways(recipe, seed, target, networks).items():
            for name, way in named.items():
                known = curves.get(START, {}).get(NEW_HEAD) if _is_new_head(recipe, section, name) else None
                curve = known[-1] if known else _curve(trials, _file_name(seed, section, name), way, recipe)
                curves.setdefault(section, {}).setdefault(name, []).append(curve)
    result = FinetuneResult(recipe, {section: dict(named) for section, named in curves.items()})
    result.save()
    return result


def _is_new_head(recipe: FinetuneRecipe, section: str, name: str) -> bool:
    # The usual way of two sections is one and the same training where they start from one extractor.
    start, adapters = recipe.start, recipe.adapters
    same = start is not None and adapters is not None and start.extractor == adapters.extractor
    return same and section == ADAPTERS and name == WHOLE


def _file_name(seed: int, section: str, name: str) -> str:
    return f"seed{seed}-{section}-{name.replace(',', '').replace(' ', '_')}"


def _curve(trials: Trials, name: str, way: Way, recipe: FinetuneRecipe) -> Curve:
    def measure() -> dict[str, Any]:
        learned = way(name if trials.progress else None)
        if trials.folder is not None:
            _save(trials.folder / TRAININGS / name, learned, recipe)
        return learned.curve.to_dict()

    return Curve.from_dict(trials.result(name, measure))


def _save(folder: Path, learned: Learned, recipe: FinetuneRecipe) -> None:
    """Write what was trained as components; a network that left its space is the reference of one of its own."""
    extractor, head = learned.extractor, learned.head
    measured = Result(recipe.target.test.dataset, learned.curve.accuracy[-1], recipe.target.test.split)
    for part in (extractor, head):
        if part is not None:
            part.facts = replace(part.facts, results=(measured,))
    if extractor is not None:
        if not extractor.space.is_final:
            extractor.space.finalize(reference=extractor.digest())
        save_members(folder, extractor.space, {"target": (extractor, head)})
    elif head is not None and not (folder / "head-target").exists():
        head.save_pretrained(folder / "head-target")

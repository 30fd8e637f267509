"""Run a recipe of the application: all seeds, tables, pictures."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_compat.errors import MissingExtraError
from timm_compat.experiments.transfer.networks import Read, reader
from timm_compat.experiments.transfer.pictures import draw_transfer, draw_upgrade
from timm_compat.experiments.transfer.recipe import ClassifierTransferRecipe
from timm_compat.experiments.transfer.tables import TransferTable, UpgradeTable
from timm_compat.experiments.transfer.transfer import measure_transfer, read_transfer
from timm_compat.experiments.transfer.upgrade import measure_upgrade, read_upgrade
from timm_compat.experiments.trials import Trials
from timm_compat.storage.files import replace_text

TABLES_FILE, SUMMARY_FILE = "tables.md", "summary.json"
TRANSFER_PICTURE, UPGRADE_PICTURE = "transfer.png", "upgrade.png"

READERS: dict[str, Callable[..., Any]] = {"transfer": read_transfer, "upgrade": read_upgrade}
MEASURES: dict[str, Callable[..., Any]] = {"transfer": measure_transfer, "upgrade": measure_upgrade}


@dataclass(frozen=True)
class ClassifierTransferResult:
    """What a recipe gave.

    Attributes:
        recipe: what was run.
        transfer: heads on other architectures, or None.
        upgrade: old heads on a new extractor, or None.
    """

    recipe: ClassifierTransferRecipe
    transfer: TransferTable | None
    upgrade: UpgradeTable | None

    def to_markdown(self) -> str:
        """All tables, each part closed by one line that sums it up."""
        parts = [table for table in (self.transfer, self.upgrade) if table is not None]
        return "\n\n".join(text for table in parts for text in (table.to_markdown(), table.in_one_line()))

    def summary(self) -> dict[str, Any]:
        """The figures as JSON values."""
        found = {"transfer": self.transfer, "upgrade": self.upgrade}
        tables = {name: None if table is None else table.to_dict() for name, table in found.items()}
        return {"seeds": list(self.recipe.seeds), "output": self.recipe.output_dir, **tables}

    def save(self, folder: Path) -> None:
        """Write tables, figures and, where Matplotlib is installed, pictures into a folder."""
        replace_text(folder / TABLES_FILE, self.to_markdown() + "\n")
        replace_text(folder / SUMMARY_FILE, json.dumps(self.summary(), indent=2) + "\n")
        with suppress(MissingExtraError):
            if self.transfer is not None:
                draw_transfer(self.transfer, folder / TRANSFER_PICTURE)
            if self.upgrade is not None:
                draw_upgrade(self.upgrade, folder / UPGRADE_PICTURE)


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
    """
    first = reader(recipe.seeds[0])
    for part in _parts(recipe):
        READERS[part](recipe, first)
    trials = Trials(recipe, resume=resume, progress=progress)
    found: dict[str, tuple[Any, ...]] = {
        part: tuple(
            _trial(part, recipe, seed, first if seed == recipe.seeds[0] else reader(seed), trials)
            for seed in recipe.seeds
        )
        for part in _parts(recipe)
    }
    result = ClassifierTransferResult(
        recipe,
        TransferTable(found["transfer"]) if "transfer" in found else None,
        UpgradeTable(found["upgrade"]) if "upgrade" in found else None,
    )
    if trials.folder is not None:
        result.save(trials.folder)
    return result


def _parts(recipe: ClassifierTransferRecipe) -> list[str]:
    return [part for part in READERS if getattr(recipe, part) is not None]


def _trial(part: str, recipe: ClassifierTransferRecipe, seed: int, read: Read, trials: Trials) -> Any:
    def measure() -> Any:
        return MEASURES[part](recipe, seed, READERS[part](recipe, read), trials)

    return trials.result(f"{part}-seed{seed}", measure)

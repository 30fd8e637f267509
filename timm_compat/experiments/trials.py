"""Results that are kept one by one: what was measured before an interruption is not measured again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError, OutputExistsError
from timm_compat.recipes.trials import TrialsRecipe
from timm_compat.recipes.writer import recipe_to_text
from timm_compat.space import CompatSpace
from timm_compat.storage.component import Component
from timm_compat.storage.files import check_new_folder, check_writable, replace_text
from timm_compat.training.fit import FitResult, fit
from timm_compat.training.members import Member

RECIPE_FILE = "recipe.yaml"
RESULTS, TRAININGS, COMPONENTS = "results", "trainings", "components"


class Trials:
    """The folder of an application: ``recipe.yaml``, ``results/NAME.json``, ``trainings/NAME/`` and
    ``components/NAME/``. It is made for the first of these: what is refused before leaves nothing behind.

    Args:
        recipe: what is run; its ``output_dir`` is the folder. Without one nothing is kept.
        resume: go on with what the folder holds, which must be of the same recipe.
        progress: whether trainings show a bar.

    Raises:
        OutputExistsError: the folder holds something, and ``resume`` is false.
        OutputWriteError: the folder cannot be written.
        ConfigError: ``resume`` without a folder, or with one of another recipe.
    """

    def __init__(self, recipe: TrialsRecipe, *, resume: bool = False, progress: bool = True) -> None:
        self.progress = progress
        self.folder = None if recipe.output_dir is None else Path(recipe.output_dir)
        if self.folder is None:
            if resume:
                raise ConfigError("resume: expected output_dir with earlier results, got none")
            return
        self._text, file = recipe_to_text(replace(recipe, output_dir=None)), self.folder / RECIPE_FILE
        if not resume or not file.is_file():
            _check_new(self.folder, file)
        elif file.read_text(encoding="utf-8") != self._text:
            raise ConfigError(f"resume: expected the recipe of {file}, got another; name a new folder")
        else:
            check_writable(self.folder)

    def result(self, name: str, measure: Callable[[], Any]) -> Any:
        """What was measured under a name: JSON values, from the folder if they are there.

        Args:
            name: a file's name.
            measure: called where there is no result yet.
        """
        folder = self._open()
        if folder is None:
            return measure()
        file = folder / RESULTS / f"{name}.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        found = measure()
        replace_text(file, json.dumps(found, indent=2) + "\n")
        return found

    def train(
        self, name: str, space: CompatSpace, members: Sequence[Member], config: TrainConfig, **options: Any
    ) -> FitResult:
        """Train members in place; an interrupted training goes on, a finished one is read from its folder.

        Args:
            name: a folder's name.
            space: as in ``fit``.
            members: as in ``fit``.
            config: its seed is the trial's; the folder is decided here.
            **options: further keywords of ``fit``.

        Raises:
            CompatError: as ``fit`` does.
        """
        folder = self._open()
        if folder is not None:
            config = replace(config, output_dir=str(folder / TRAININGS / name), keep_checkpoints=1)
        label = name if self.progress else None
        return fit(space, members, config, resume=folder is not None, progress=label, **options)

    def keep(self, name: str, part: Component) -> None:
        """Write a component to ``components/NAME``, unless it is there; nowhere without a folder.

        Args:
            name: of its folder, which may lie in others.
            part: of a final space.

        Raises:
            DraftSpaceError: its space is a draft.
        """
        folder = self._open()
        if folder is not None and not (place := folder / COMPONENTS / name).exists():
            part.save_pretrained(place)

    def _open(self) -> Path | None:
        """The folder, with its recipe."""
        if self.folder is not None and not (file := self.folder / RECIPE_FILE).is_file():
            replace_text(file, self._text)
        return self.folder


def _check_new(folder: Path, file: Path) -> None:
    try:
        check_new_folder(folder)
    except OutputExistsError as error:
        if file.is_file():
            raise OutputExistsError(f"{error}; it holds results: resume=True (--resume) goes on with them") from error
        raise

"""The engine under adapt, transfer and finetune: seeds, results kept one by one, trainings, components, one folder."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError, OutputExistsError
from timm_compat.experiments.frozen import Features
from timm_compat.experiments.result import RECIPE_FILE, ExperimentResult, Record
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.recipes.reader import read_recipe
from timm_compat.recipes.schema import DataRecipe
from timm_compat.recipes.trials import TrialsRecipe
from timm_compat.recipes.writer import recipe_to_text
from timm_compat.space import CompatSpace
from timm_compat.storage.component import Component
from timm_compat.storage.facts import Result
from timm_compat.storage.files import check_new_folder, check_writable, replace_text
from timm_compat.training.fit import FitResult, fit, save_members
from timm_compat.training.members import Member

RESULTS, TRAININGS, COMPONENTS, FEATURES = "results", "trainings", "components", "features"

Given = TypeVar("Given", bound=ExperimentResult)


def kept(file: Path, measure: Callable[[], Any], stands: Callable[[Any], bool] | None = None) -> Any:
    """JSON values that a file holds, or else what ``measure`` gives, which is written to it in one step.

    Args:
        file: of this measurement.
        measure: called where there is no such file, or where what it holds does not stand.
        stands: whether what it holds still counts; it does if None.
    """
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        if stands is None or stands(found):
            return found
    text = json.dumps(measure(), indent=2)
    replace_text(file, text + "\n")
    return json.loads(text)  # as it will be read: lists for tuples


class Experiment:
    """A run of a recipe, and what it keeps in its folder: ``recipe.yaml``, ``results/NAME.json``, ``trainings/NAME/``,
    ``components/NAME/`` and, unless ``training.cache_dir`` is another place, frozen backbones' ``features/``. The
    folder is made for the first of these: what is refused before leaves nothing behind.

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
        self.progress, self._cache_dir = progress, recipe.training.cache_dir
        self.folder = None if recipe.output_dir is None else Path(recipe.output_dir)
        if self.folder is None:
            if resume:
                raise ConfigError("resume: expected output_dir with earlier results, got none")
            return
        kept, file = replace(recipe, output_dir=None), self.folder / RECIPE_FILE
        self._text = recipe_to_text(kept)
        if not resume or not file.is_file():
            _check_new(self.folder, file)
        elif file.read_text(encoding="utf-8") != self._text and read_recipe(type(recipe), file) != kept:
            raise ConfigError(f"resume: expected the recipe of {file}, got another; name a new folder")
        else:
            check_writable(self.folder)

    @cached_property
    def features(self) -> Features:
        """What networks make of images. Without any folder, a temporary one keeps it while the experiment runs."""
        folder = self._cache_dir or (None if self.folder is None else self.folder / FEATURES)
        if folder is None:
            folder = tempfile.mkdtemp(prefix="timm-compat-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Features(Path(folder), None if self.progress else False)

    def result(self, name: str, measure: Callable[[], Any]) -> Any:
        """JSON values that were measured under a name, a file's; ``measure`` is called where there are none yet."""
        folder = self._open()
        return measure() if folder is None else kept(folder / RESULTS / f"{name}.json", measure)

    def train(
        self, name: str, space: CompatSpace, members: Sequence[Member], config: TrainConfig, **options: Any
    ) -> FitResult:
        """Call ``fit`` with the folder ``trainings/NAME``: an interrupted one is continued, a finished one is read."""
        folder = self._open()
        if folder is not None:
            config = replace(config, output_dir=str(folder / TRAININGS / name), keep_checkpoints=1)
        label = name if self.progress else None
        return fit(space, members, config, resume=folder is not None, progress=label, **options)

    def train_alone(self, name: str, member: Member, config: TrainConfig, **options: Any) -> FitResult:
        """Train one member, as ``train``, in a space that its features define if nothing else does."""
        space = member.extractor.space
        fitted = self.train(name, space, [member], config, **options)
        if not space.is_final:
            space.finalize(reference=member.extractor.digest())
            if self.folder is not None:
                save_members(self.folder / TRAININGS / name, space, {member.name: (member.extractor, member.head)})
        return fitted

    def keep(self, name: str, part: Component) -> None:
        """Write a component of a final space to ``components/NAME``, unless it is there; nowhere without a folder."""
        folder = self._open()
        if folder is not None and not self.keeps(name):
            part.save_pretrained(folder / COMPONENTS / name)

    def keeps(self, name: str) -> bool:
        """Whether ``components/NAME`` is there, or there is no folder to keep it in."""
        return self.folder is None or (self.folder / COMPONENTS / name).exists()

    def keep_target(
        self,
        name: str,
        extractor: CompatExtractor | None,
        head: TaskHead | None,
        test: DataRecipe | None,
        accuracy: float | None,
        **training: Any,
    ) -> None:
        """Keep what was trained for a target as "space", "extractor-target" and "head-target" in ``components/NAME``.

        The extractor defines its space where nothing else does. Cards tell the accuracy on the test images, in [0, 1],
        and what ``training`` says.
        """
        results = () if test is None or accuracy is None else (Result(test.dataset, accuracy, test.split),)
        if extractor is not None:
            if not extractor.space.is_final:
                extractor.space.finalize(reference=extractor.digest())
            self.keep(f"{name}/space", extractor.space)
        for role, part in (("extractor", extractor), ("head", head)):
            if part is not None:
                part.facts = replace(part.facts, training={**part.facts.training, **training}, results=results)
                self.keep(f"{name}/{role}-target", part)

    def _open(self) -> Path | None:
        """The folder, with its recipe."""
        if self.folder is not None and not (file := self.folder / RECIPE_FILE).is_file():
            replace_text(file, self._text)
        return self.folder


def run_experiment(
    recipe: Any,
    kind: type[Given],
    prepare: Callable[[Experiment, Any], Callable[[int], Mapping[str, Mapping[str, Record]]]],
    *,
    resume: bool = False,
    progress: bool = True,
) -> Given:
    """Measure every way for every seed, and save what came out, a result of the given kind.

    What all seeds need is read by ``prepare``, which gives the function that measures a seed: records by part and way.
    """
    measure = prepare(Experiment(recipe, resume=resume, progress=progress), recipe)
    figures: dict[str, dict[str, list[Record]]] = {}
    for seed in recipe.seeds:
        for part, ways in measure(seed).items():
            for way, record in ways.items():
                figures.setdefault(part, {}).setdefault(way, []).append(record)
    result = kind(recipe, figures)
    result.save()
    return result


def _check_new(folder: Path, file: Path) -> None:
    try:
        check_new_folder(folder)
    except OutputExistsError as error:
        if file.is_file():
            raise OutputExistsError(f"{error}; it holds results: resume=True (--resume) continues") from error
        raise

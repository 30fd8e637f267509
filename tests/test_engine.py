"""Experiments: each result is kept, and what was interrupted goes on."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import timm_compat as tc
from timm_compat.experiments.engine import Experiment
from timm_compat.recipes.trials import TrialsRecipe
from timm_compat.table import spread_table, spread_text


def test_a_kept_result_is_not_measured_again(tmp_path: Path) -> None:
    recipe = TrialsRecipe(seeds=(0, 1), output_dir=str(tmp_path / "run"))
    calls = []

    def measure() -> dict[str, float]:
        calls.append(1)
        return {"accuracy": 0.5}

    assert Experiment(recipe).result("cell-0", measure) == {"accuracy": 0.5}
    assert Experiment(recipe, resume=True).result("cell-0", measure) == {"accuracy": 0.5}
    assert len(calls) == 1
    with pytest.raises(tc.errors.OutputExistsError, match="--resume"):
        Experiment(recipe)
    with pytest.raises(tc.errors.ConfigError, match="another"):
        Experiment(replace(recipe, seeds=(0,)), resume=True)


def test_what_is_refused_before_anything_ran_leaves_no_folder(tmp_path: Path) -> None:
    experiment = Experiment(TrialsRecipe(output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    experiment.result("cell", lambda: 1)
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(tc.errors.OutputExistsError):
            Experiment(TrialsRecipe(output_dir=str(tmp_path)), resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_a_finished_training_is_read_from_its_folder(tmp_path: Path) -> None:
    recipe = TrialsRecipe(output_dir=str(tmp_path / "run"))
    data = tc.data.load_digits("train").subset(torch.arange(256))
    histories, weights = [], []
    for resume in (False, True):
        space = tc.CompatSpace(16, data.class_names, ["common_classes"])
        torch.manual_seed(0)
        extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16)
        member = tc.Member("a", extractor, tc.TaskHead(space, data.class_names), data)
        config = tc.TrainConfig(epochs=1, batch_size=64)
        result = Experiment(recipe, resume=resume, progress=False).train("first", space, [member], config)
        histories.append(result.history)
        weights.append(extractor.digest())
    assert histories[0] == histories[1]
    assert weights[0] == weights[1]
    assert (tmp_path / "run" / "trainings" / "first" / "head-a" / "config.json").is_file()


@pytest.mark.parametrize(
    "wrong",
    [{"seeds": ()}, {"seeds": (1, 1)}, {"seeds": ("a",)}, {"training": tc.TrainConfig(seed=3)}],
)
def test_recipes_that_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(tc.errors.ConfigError):
        TrialsRecipe(**wrong)  # type: ignore[arg-type]


def test_tables_show_mean_and_spread() -> None:
    assert spread_text([0.5, 0.7]) == "0.600 ± 0.141"
    assert spread_text([]) == "n/a"
    table = spread_table("mode", {"source only": {"target": [0.5]}, "adapted": {"target": [0.7], "source": [0.9]}})
    assert "| source only | 0.500  | n/a    |" in table


def test_a_recipe_that_was_written_in_another_form_is_the_same(tmp_path: Path) -> None:
    recipe = TrialsRecipe(seeds=(0, 1), output_dir=str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("# as an earlier version wrote it\nseeds:\n- 0\n- 1\n")
    assert Experiment(recipe, resume=True).result("cell", lambda: 1) == 1


@pytest.mark.slow
def test_the_public_module_loads_what_is_asked_for() -> None:
    program = "import sys, timm_compat.experiments; print([m for m in sys.modules if m in ('pydantic', 'accelerate')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

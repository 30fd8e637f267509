"""Adaptation from end to end through the command line: table, components, resuming, and what bad input says."""

import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from PIL import Image

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.data.shifts import SHIFTS, shifted_dataset
from timm_compat.experiments import AdaptRecipe, read_recipe, run_adaptation
from timm_compat.experiments.adapt.domains import read_domains
from timm_compat.experiments.adapt.modes import tied_copy, with_statistics_of
from timm_compat.experiments.adapt.recipe import MODES, TOGETHER
from timm_compat.experiments.adapt.selection import Watch, choose, regret
from timm_compat.experiments.frozen import Features
from timm_compat.recipes.writer import recipe_to_text

RECIPES = Path(__file__).resolve().parents[1] / "scripts" / "recipes"
DIGITS = RECIPES / "digits_adapt.yaml"
READY = sorted(path for path in RECIPES.glob("*.yaml") if "timm-compat adapt " in path.read_text(encoding="utf-8"))
QUICK = [
    *("source.train.limit=100", "source.test.limit=100", "target.train.limit=100", "target.test.limit=100"),
    *("training.epochs=1", "training.batch_size=50", "img_size=16", "feature_dim=16", "seeds=[0]"),
    *("refinement.epochs=1", "refinement.rounds=2", "refinement.round_epochs=1"),
]
TRAINED = [mode for mode in MODES if mode != "normalized"]  # which is for backbones that stay frozen


def adapt(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["adapt", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def target_test() -> tc.data.ArrayDataset:
    """What ``QUICK`` measures in the target's domain."""
    return read_domains(read_recipe(AdaptRecipe, DIGITS, QUICK), 0).target_test


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, AdaptRecipe, dict]:
    folder = tmp_path_factory.mktemp("adapt") / "run"
    recipe = read_recipe(AdaptRecipe, DIGITS, [*QUICK, f"output_dir={folder}"])
    return folder, recipe, run_adaptation(recipe, progress=False).summary()


class TestRun:
    def test_every_mode_is_measured_and_one_is_selected(self, finished) -> None:
        _, _, summary = finished
        assert list(summary["figures"]) == [*TRAINED, "selected"]
        for mode, (record,) in summary["figures"].items():
            assert 0 <= record["target"] <= 1
            assert (record["source"] is not None) == (mode in ("source_only", *TOGETHER)) or mode == "selected"
        unsupervised = [mode for mode in TRAINED if mode != "target_supervised"]
        informed = max(unsupervised, key=lambda mode: summary["figures"][mode][0]["information"])
        assert summary["selected"] == [informed]
        best = max(summary["figures"][mode][0]["target"] for mode in unsupervised)
        chosen = summary["figures"]["selected"][0]
        assert chosen["regret"] == pytest.approx(best - chosen["target"])

    def test_the_components_give_the_measured_accuracy(self, finished) -> None:
        folder, _, summary = finished
        parts = folder / "components" / "seed0"
        extractor = tc.CompatExtractor.from_pretrained(parts / "extractor-target")
        head = tc.TaskHead.from_pretrained(parts / "head-target")
        space = tc.CompatSpace.from_pretrained(parts / "space")
        assert extractor.space.fingerprint == head.space.fingerprint == space.fingerprint
        test = target_test()
        matrix = tc.recombination_matrix({"a": extractor}, {"a": head}, test)
        assert matrix.accuracy[0, 0] == summary["figures"]["selected"][0]["target"]
        assert extractor.facts.results[0].accuracy == matrix.accuracy[0, 0]
        assert extractor.facts.training["adaptation"] == summary["selected"][0]
        assert (folder / "adaptation.png").is_file()

    def test_tables_and_figures_lie_in_the_folder(self, finished) -> None:
        folder, _, summary = finished
        assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == summary
        tables = (folder / "tables.md").read_text(encoding="utf-8")
        assert "| mode              | target accuracy |" in tables
        assert "- batchnorm: the source network with BatchNorm statistics of target images" in tables

    def test_the_source_head_is_not_touched_by_pseudo_labels(self, finished) -> None:
        folder = finished[0] / "trainings"
        rounds = [tc.TaskHead.from_pretrained(folder / f"pseudo_labels-round{n}-seed0" / "head-target") for n in (1, 2)]
        assert rounds[0].digest() == rounds[1].digest()

    def test_what_was_interrupted_goes_on_to_the_same(self, finished, tmp_path, capsys) -> None:
        folder, _, summary = finished
        again = tmp_path / "run"
        shutil.copytree(folder, again)
        for gone in ("results/pseudo_labels-seed0.json", "results/shared-seed0.json"):
            (again / gone).unlink()
        for gone in ("trainings/pseudo_labels-round2-seed0", "trainings/shared_warm-seed0", "components"):
            shutil.rmtree(again / gone)
        code, out, err = adapt(capsys, DIGITS, *QUICK, "--resume", "--json", "--output", again)
        assert code == 0, err
        assert json.loads(out) == {**summary, "output": str(again)}
        weights = [path / "components" / "seed0" / "extractor-target" / "model.safetensors" for path in (folder, again)]
        assert weights[0].read_bytes() == weights[1].read_bytes()

    def test_table_for_people(self, finished, capsys) -> None:
        code, out, _ = adapt(capsys, DIGITS, *QUICK, "--resume", "--output", finished[0])
        assert code == 0
        assert "| mode              | target accuracy | source accuracy | information | below the best epoch |" in out
        assert f"Components, results and recipe: {finished[0]}" in out
        assert all(MODES[mode] in out for mode in TRAINED)


@pytest.mark.parametrize("select", ["last", "confidence"])
def test_other_criteria_and_alignment(select: str) -> None:
    overrides = [*QUICK, "modes=[separate,pseudo_labels]", f"select={select}", "training.alignment=l2"]
    recipe = read_recipe(AdaptRecipe, DIGITS, [*overrides, "output_dir=null"])
    result = run_adaptation(recipe, progress=False)
    assert list(result.figures["modes"]) == ["separate", "pseudo_labels", "selected"]
    if select == "last":
        assert result.selected == ("pseudo_labels",)


def test_further_tasks_are_shared_by_both_domains(tmp_path, capsys) -> None:
    words = [*QUICK, "modes=[separate]", "tasks=[flip,rotation,location]"]
    code, _, err = adapt(capsys, DIGITS, *words, "--output", tmp_path / "run")
    assert code == 0, err
    space = tc.CompatSpace.from_pretrained(tmp_path / "run" / "components" / "seed0" / "space")
    assert space.methods == ("flip", "initial_weights", "location", "rotation")
    (log,) = (tmp_path / "run" / "trainings").glob("*/history.jsonl")
    record = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    for member in ("source", "target"):
        assert all(record[f"{member}/{task}"] > 0 for task in ("rotation", "location", "flip"))


def test_unlabelled_files_of_another_size_without_a_test(tmp_path, capsys) -> None:
    digits = tc.data.load_digits("test")
    for number in range(12):
        picture = Image.fromarray(digits.images[number, 0].numpy()).resize((20, 14)).convert("RGB")
        picture.save(tmp_path / f"{number}.png")
    words = [*QUICK, f"target={{train: {{dataset: images, root: {tmp_path}}}}}", "modes=[batchnorm,shared]"]
    code, out, err = adapt(capsys, DIGITS, *words, "--output", tmp_path / "run", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["figures"]["shared"][0]["target"] is None
    extractor = tc.CompatExtractor.from_pretrained(tmp_path / "run" / "components" / "seed0" / "extractor-target")
    assert extractor.data_config["input_size"] == (3, 16, 16)
    assert not (tmp_path / "run" / "adaptation.png").exists()


NAMED = "{dataset: digits, rename: {0: a, 1: b, 2: c, 3: d, 4: e, 5: f, 6: g, 7: h, 8: i, 9: j}}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([f"target={{train: {NAMED}}}"], "target.train: expected at least 2 classes that source.train has too"),
        (["target.train={dataset: digits}", f"target.test={NAMED}"], "target.test: expected at least 2 classes"),
        (["target.train.limit=1"], "target.train: expected at least 10 images to adapt to, got 1"),
        (["source.train={dataset: images, root: .}"], "source: expected labelled images"),
        (["target.test={dataset: images, root: .}"], "test: expected labelled images"),
        (["modes=[target_supervised]", "target.train={dataset: images, root: .}"], "needs labels of the target"),
        (["modes=[magic]"], "modes.0: expected one of source_only"),
        (["tasks=[jigsaw]"], "tasks.0: expected one of rotation, location, flip, got 'jigsaw'"),
        (["tasks=[]"], "tasks: expected at least one of rotation, location, flip, got none"),
        (["select=luck"], "select: expected one of information"),
        (["target.shift=[recoloured]"], "expected 3 channels, got 1"),
        (["target.shift=[snow]"], "shift.0: expected one of inverted"),
        (["source.train.rename={car: a}"], "source.train: rename: expected classes among 0, 1"),
        (["source.train.rename={'0': '1'}"], "a name of its own, got '1' twice"),
        (["source.train.rename={'0': 1}"], "every class to keep a name of its own, got '1' twice"),
        (["refinement.first_share=0"], "first_share: expected a number over 0, got 0"),
        (["refinement.rounds=0"], "rounds: expected a number of at least 1"),
        (["backbone=test_resnett"], "test_resnet"),
    ],
)
def test_bad_input_says_what_to_do(words: list[str], expected: str, capsys, tmp_path) -> None:
    code, _, err = adapt(capsys, DIGITS, *QUICK, *words, "--output", tmp_path / "run")
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert "backbone" in words[0] or not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_recipe(path: Path, tmp_path) -> None:
    assert path.read_text(encoding="utf-8").split("\n")[0].endswith(f": timm-compat adapt scripts/recipes/{path.name}")
    recipe = read_recipe(AdaptRecipe, path)
    assert recipe.output_dir == f"runs/{path.stem}"
    (tmp_path / "again.yaml").write_text(recipe_to_text(recipe), encoding="utf-8")
    assert read_recipe(AdaptRecipe, tmp_path / "again.yaml") == recipe


def test_ready_recipes_are_all_there() -> None:
    names = ["cifar10_recoloured", "cifar10_stl10", "digits_adapt", "mnist_usps"]
    pacs = [f"pacs_{way}" for way in ("art_photo", "cartoon_photo", "photo_art", "photo_cartoon", "photo_sketch")]
    assert [path.stem for path in READY] == [*names, *pacs, "pacs_sketch_photo", "usps_mnist"]


class TestParts:
    def test_tied_extractors_share_weights_and_keep_statistics_of_their_own(self) -> None:
        digits = tc.data.load_digits("train").subset(torch.arange(100))
        space = tc.CompatSpace(16, methods=["rotation"])
        source = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16)
        target = tied_copy(source)
        before = source.digest()
        members = [
            tc.Member("source", source, tc.TaskHead(space, digits.class_names), digits),
            tc.Member("target", target, None, shifted_dataset(digits, ["inverted"])),
        ]
        tc.fit(space, members, tc.TrainConfig(epochs=1, batch_size=50), progress=None)
        assert source.digest() != before
        pairs = zip(source.parameters(), target.parameters(), strict=True)
        assert all(one is other for one, other in pairs)
        means = [extractor.interface.normalization.running_mean for extractor in (source, target)]
        assert not torch.allclose(*means)

    def test_statistics_are_those_of_the_target(self) -> None:
        digits = tc.data.load_digits("train").subset(torch.arange(64))
        extractor = tc.create_extractor("test_resnet", tc.CompatSpace(16), in_chans=1, img_size=16).eval()
        adapted = with_statistics_of(extractor, digits, 64, 0)
        assert not adapted.training
        with torch.no_grad():
            first = next(part for part in adapted.modules() if isinstance(part, torch.nn.BatchNorm2d))
            inputs = []
            first.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
            adapted(adapted.preprocess(digits.images))
        expected = inputs[0].mean(dim=(0, 2, 3))
        torch.testing.assert_close(first.running_mean, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(first.running_var, inputs[0].var(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)

    def test_choice_and_regret(self) -> None:
        candidates = [{"information": 0.1, "target": 0.9}, {"information": 0.3, "target": 0.7}, {"information": 0.2}]
        assert choose(candidates, "information") == 1
        assert choose(candidates, "last") == 2
        assert regret(candidates[:2], "information") == pytest.approx(0.2)
        assert regret(candidates, "information") is None

    def test_a_sorted_set_is_watched_in_all_its_classes(self, tmp_path) -> None:
        digits = tc.data.load_digits("train")
        in_order = digits.subset(digits.labels.argsort(stable=True))
        space = tc.CompatSpace(16)
        extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16)
        features = Features(tmp_path)
        watch = Watch(extractor, tc.TaskHead(space, digits.class_names), in_order, None, features)
        assert len(watch.images) <= 1000 < len(digits)
        assert len(watch.images.labels.unique()) == 10

    @pytest.mark.parametrize("name", SHIFTS)
    def test_shifts_change_images_alike_for_one_seed(self, name: str) -> None:
        digits = tc.data.load_digits("test").with_channels(3)
        changed = shifted_dataset(digits, [name])
        assert changed.images.shape == digits.images.shape
        assert not torch.equal(changed.images, digits.images)
        assert torch.equal(changed.images, shifted_dataset(digits, [name]).images)
        assert torch.equal(changed.labels, digits.labels)

    def test_inverting_twice_changes_nothing(self) -> None:
        digits = tc.data.load_digits("test")
        assert torch.equal(shifted_dataset(digits, ["inverted", "inverted"]).images, digits.images)

    def test_renamed_classes_are_chosen_by_their_new_names(self) -> None:
        plain = tc.data.load_dataset("digits", classes=["1", "0"])
        renamed = tc.data.load_dataset("digits", rename={"0": "zero"}, classes=["1", "zero"])
        assert renamed.class_names == ("1", "zero")
        assert torch.equal(renamed.images, plain.images)
        assert torch.equal(renamed.labels, plain.labels)

    def test_a_recipe_without_labels_leaves_the_upper_bound_out(self) -> None:
        source, target = ({"train": data} for data in ({"dataset": "digits"}, {"dataset": "images", "root": "photos"}))
        recipe = AdaptRecipe(source=source, target=target, backbone="test_resnet")
        assert "target_supervised" not in recipe.chosen_modes


def save_source(folder: Path, level: str = "pooled", classes: str = "0123456789") -> tuple[Path, Path]:
    """A quickly trained network of another build than the recipe's, in a space that shares heads of its own."""
    images = tc.data.load_digits("train").subset(torch.arange(300)).of_classes(list(classes))
    space = tc.CompatSpace(24, images.class_names, ["common_classes", "rotation"], level=level, normalization="layer")
    torch.manual_seed(0)
    extractor = tc.create_extractor("test_efficientnet", space, in_chans=1, img_size=16)
    head = tc.TaskHead(space, reversed(images.class_names), depth=2)
    tc.fit(space, [tc.Member("a", extractor, head, images)], tc.TrainConfig(epochs=2, batch_size=50), progress=None)
    return extractor.save_pretrained(folder / "extractor-a"), head.save_pretrained(folder / "head-a")


def sources(extractor: object, head: object) -> list[str]:
    return [f"source_extractor={extractor}", f"source_head={head}"]


def accuracy_as_it_is(parts: tuple[Path, Path]) -> float:
    extractor, head = tc.CompatExtractor.from_pretrained(parts[0]), tc.TaskHead.from_pretrained(parts[1])
    test = target_test()
    return float(tc.recombination_matrix({"a": extractor}, {"a": head}, test).accuracy[0, 0])


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[Path, Path]:
    return save_source(tmp_path_factory.mktemp("parts"))


class TestGivenSource:
    MODES = ("source_only", "batchnorm", "separate_warm", "shared_warm", "pseudo_labels")

    def test_takes_the_place_of_the_trained_one(self, parts, tmp_path, capsys) -> None:
        words = [*QUICK, *sources(*parts), f"modes=[{','.join(self.MODES)}]", "tasks=[location,flip]"]
        code, out, err = adapt(capsys, DIGITS, *words, "--output", tmp_path / "run", "--json")
        assert code == 0, err
        summary = json.loads(out)
        assert list(summary["figures"]) == [*self.MODES, "selected"]
        assert not list((tmp_path / "run" / "trainings").glob("source_only*"))
        assert summary["figures"]["source_only"][0]["target"] == accuracy_as_it_is(parts)
        adapted = tmp_path / "run" / "components" / "seed0"
        model = tc.compose(
            tc.CompatExtractor.from_pretrained(adapted / "extractor-target"),
            tc.TaskHead.from_pretrained(adapted / "head-target"),
        )
        assert model.extractor.architecture == "test_efficientnet"
        warm = tc.CompatSpace.from_pretrained(tmp_path / "run" / "trainings" / "shared_warm-seed0" / "space")
        assert (warm.methods, warm.feature_dim, warm.normalization) == (("flip", "location"), 24, "layer")
        (tmp_path / "run" / "results" / "shared_warm-seed0.json").unlink()
        shutil.rmtree(tmp_path / "run" / "trainings" / "shared_warm-seed0")
        assert adapt(capsys, DIGITS, *words, "--output", tmp_path / "run", "--json", "--resume")[:2] == (0, out)

    def test_the_head_of_another_space(self, parts, tmp_path, capsys) -> None:
        other = save_source(tmp_path, classes="01234")
        code, _, err = adapt(capsys, DIGITS, *QUICK, *sources(parts[0], other[1]), "--output", tmp_path / "run")
        assert code == 2
        assert f"source_extractor {parts[0]} and source_head {other[1]} live in different spaces" in err
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("settings", "words", "expected"),
        [
            ({"level": "map"}, [], "expected a space of pooled features, got level 'map'"),
            (
                {"classes": "01234"},
                ["modes=[shared_warm]"],
                "source.train: expected the classes of source_head (4, 3, 2, 1, 0), which shared_warm trains further",
            ),
            (
                {"classes": "01234"},
                ["modes=[batchnorm]", "target.test.classes=['5', '6', '7']"],
                "target.test: expected at least 2 classes that source_head has too (4, 3, 2, 1, 0), got 0 of 5, 6, 7",
            ),
            ({}, ["arguments={in_chans: 3}"], "source_extractor takes 1 channels, got in_chans 3"),
            ({}, ["source_head=null"], "source_head: expected one beside source_extractor, got none"),
            ({}, ["source_extractor=null"], "source_extractor: expected one beside source_head, got none"),
        ],
    )
    def test_bad_input_says_what_to_do(self, settings, words, expected, parts, tmp_path, capsys) -> None:
        given = save_source(tmp_path, **settings) if settings else parts
        code, _, err = adapt(capsys, DIGITS, *QUICK, *sources(*given), *words, "--output", tmp_path / "run")
        assert code == 2
        assert expected in err
        assert not (tmp_path / "run").exists()

    def test_a_head_with_fewer_classes_is_measured_on_those(self, tmp_path, capsys) -> None:
        few = save_source(tmp_path, classes="01234")
        words = [*sources(*few), "modes=[source_only,batchnorm,pseudo_labels]"]
        code, out, err = adapt(capsys, DIGITS, *QUICK, *words, "--output", tmp_path / "run", "--json")
        assert code == 0, err
        assert json.loads(out)["figures"]["source_only"][0]["target"] == accuracy_as_it_is(few)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_adaptation_gains_on_real_digits_over_three_seeds() -> None:
    modes = "modes=[source_only,batchnorm,pseudo_labels]"
    recipe = read_recipe(AdaptRecipe, DIGITS, ["output_dir=null", "training.epochs=15", "refinement.rounds=3", modes])
    result = run_adaptation(recipe, progress=False)
    mean = {mode: statistics.fmean(result.values(mode, "target")) for mode in result.figures["modes"]}
    assert mean["source_only"] + 0.03 < mean["batchnorm"]
    assert mean["source_only"] + 0.05 < mean["selected"]
    assert mean["batchnorm"] < mean["pseudo_labels"]
    assert result.selected == ("pseudo_labels",) * 3

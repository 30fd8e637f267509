"""Efficient transfer learning: what a run leaves behind, what it counts, and what it promises on real digits."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.experiments import FinetuneRecipe, read_recipe, run_finetune
from timm_compat.experiments.finetune.cost import Curve, LiveBytes, measure_cost
from timm_compat.experiments.finetune.sections import (
    ADAPTER,
    ADAPTERS,
    CHEAP,
    CHEAP_HEAD,
    COMPATIBLE_HEAD,
    DIRECT,
    HEAD_ALONE,
    NEW_HEAD,
    OWN_EXTRACTOR,
    SCRATCH,
    START,
    WHOLE,
)
from timm_compat.experiments.finetune.tables import section_table, spent, times_fewer
from timm_compat.experiments.networks import copied, new_head
from timm_compat.recipes.writer import recipe_to_text

RECIPES = Path(__file__).resolve().parents[1] / "scripts" / "recipes"
TASK = ["3", "4", "5", "6", "7", "8"]
SMALL = """\
source:
  space: {feature_dim: 16, methods: [common_classes]}
  members:
    - {name: large, backbone: test_resnet, img_size: 16, data: {dataset: digits, limit: 64, classes: ["0", "3", "4"]}}
    - {name: small, backbone: test_vit, img_size: 16, data: {dataset: digits, limit: 64, classes: ["3", "4", "5", "6"]}}
  training: {epochs: 1, batch_size: 32}
target:
  train: {dataset: digits, limit: 40, classes: ["3", "4", "5", "6", "7", "8"]}
  test: {dataset: digits, split: test, limit: 60, classes: ["3", "4", "5", "6", "7", "8"]}
start: {extractor: large, head: small, scratch: false}
cheap_head: {cheap: small, expensive: large}
adapters: {extractor: large}
training: {epochs: 2, batch_size: 16}
frozen_training: {epochs: 2, batch_size: 16}
"""


def command(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["finetune", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "small.yaml"
    file.write_text(SMALL)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recipe_file) -> Path:
    """What one run left behind."""
    output = tmp_path_factory.mktemp("runs") / "one"
    run_finetune(read_recipe(FinetuneRecipe, recipe_file, [f"output_dir={output}"]), progress=False)
    return output


def accuracies(summary: dict) -> dict:
    """The figures that do not depend on the clock."""
    keys = ("accuracy_at_start", "accuracy", "steps", "flops", "peak_bytes")
    return {
        section: {name: [found[key] for key in keys] for name, found in summary[section].items()}
        for section in (START, CHEAP_HEAD, ADAPTERS)
    }


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


class TestRun:
    def test_leaves_tables_picture_and_figures(self, folder) -> None:
        summary = summary_of(folder)
        assert summary[START].keys() == {NEW_HEAD, COMPATIBLE_HEAD, OWN_EXTRACTOR}
        assert summary[START][NEW_HEAD]["steps"] == [6]  # 2 epochs of 40 images in batches of 16
        assert summary[ADAPTERS][WHOLE] == summary[START][NEW_HEAD]
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "tables.md").read_text().count("| ---") >= 3
        assert read_recipe(FinetuneRecipe, folder / "recipe.yaml").target.train.limit == 40

    def test_saved_parts_give_the_accuracy_that_was_measured(self, folder) -> None:
        test = tc.data.load_dataset("digits", split="test", classes=TASK, limit=60)

        def accuracy(extractor: Path, head: Path) -> float:
            parts = tc.CompatExtractor.from_pretrained(extractor), tc.TaskHead.from_pretrained(head)
            return float(tc.recombination_matrix({"a": parts[0]}, {"a": parts[1]}, test).accuracy[0, 0])

        def measured(name: str) -> float:
            return json.loads((folder / "results" / f"{name}.json").read_text())["accuracy"][-1]

        source = folder / "trainings" / "seed0-source"
        for name in ("seed0-start-compatible_head", "seed0-adapters-adapter"):
            own = folder / "components" / name
            assert accuracy(own / "extractor-target", own / "head-target") == pytest.approx(measured(name))
        # A head that was trained alone stays in the space of the sources, and runs on either of them.
        for name, on in (("trained_on_cheap_run_on_expensive", "large"), ("trained_and_run_on_cheap", "small")):
            head = folder / "components" / f"seed0-cheap_head-{name}" / "head-target"
            assert accuracy(source / f"extractor-{on}", head) == pytest.approx(measured(head.parent.name))
        assert tc.TaskHead.from_pretrained(head).facts.results[0].dataset == "digits"

    def test_a_resumed_run_equals_an_unbroken_one(self, folder, recipe_file, tmp_path, capsys) -> None:
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        for name in ("start-compatible_head", "adapters-adapter", "cheap_head-trained_on_expensive"):
            (broken / "results" / f"seed0-{name}.json").unlink()
        shutil.rmtree(broken / "components" / "seed0-adapters-adapter")
        (broken / "summary.json").unlink()
        code, _, err = command(capsys, recipe_file, "--output", broken)
        assert code == 2
        assert "--resume" in err
        code, out, err = command(capsys, recipe_file, "--output", broken, "--resume", "--json")
        assert code == 0, err
        assert accuracies(json.loads(out)) == accuracies(summary_of(folder))
        assert summary_of(broken)[START][NEW_HEAD] == summary_of(folder)[START][NEW_HEAD]  # not measured again
        weights = "components/seed0-adapters-adapter/extractor-target/interface.safetensors"
        assert (broken / weights).read_bytes() == (folder / weights).read_bytes()

    def test_from_component_folders_for_people(self, folder, recipe_file, tmp_path, capsys) -> None:
        source = folder / "trainings" / "seed0-source"
        parts = [f"start.extractor={source}/extractor-large", f"start.head={source}/head-small", "start.levels=[0.01]"]
        others = ["source=null", "cheap_head=null", "adapters=null", "training.epochs=1"]
        code, out, err = command(capsys, recipe_file, *others, *parts, "--output", tmp_path / "run")
        assert code == 0, err
        assert "steps to accuracy" in out
        assert f"Picture: {tmp_path}" in out
        expected = summary_of(folder)[START][COMPATIBLE_HEAD]["accuracy_at_start"]
        assert summary_of(tmp_path / "run")[START][COMPATIBLE_HEAD]["accuracy_at_start"] == expected

    def test_a_backbone_joins_the_space_of_a_source(self, folder, recipe_file) -> None:
        weights = folder / "trainings" / "seed0-source" / "extractor-large" / "model.safetensors"
        joined = f"{{name: third, backbone: test_resnet, img_size: 16, reference: small, weights: {weights}}}"
        recipe = read_recipe(
            FinetuneRecipe,
            recipe_file,
            [f"joined=[{joined}]", "cheap_head.expensive=third", "start=null", "adapters=null"],
        )
        with pytest.warns(UserWarning, match="join"):  # so few images of an untrained reference explain little
            result = run_finetune(recipe, progress=False)
        assert result.curves.keys() == {CHEAP_HEAD}
        assert all(len(curve.accuracy) == 3 for curves in result.curves[CHEAP_HEAD].values() for curve in curves)

    def test_a_target_of_image_files(self, folder, recipe_file, tmp_path) -> None:
        digits = tc.data.load_digits("train")
        for number in range(24):
            image, label = digits[number]
            place = tmp_path / "photos" / digits.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(place / f"{number}.png")
        data = f"{{dataset: folder, root: {tmp_path}/photos}}"
        source = folder / "trainings" / "seed0-source"
        parts = [f"adapters.extractor={source}/extractor-large", "source=null", "start=null", "cheap_head=null"]
        recipe = read_recipe(FinetuneRecipe, recipe_file, [*parts, f"target.train={data}", f"target.test={data}"])
        curves = run_finetune(recipe, progress=False).curves[ADAPTERS]
        assert {name: found[0].steps for name, found in curves.items()} == {
            name: (0, 2, 4) for name in (WHOLE, ADAPTER, HEAD_ALONE)
        }
        assert curves[HEAD_ALONE][0].setup_flops > 0


class TestBadInput:
    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["start=null", "cheap_head=null", "adapters=null"], "at least one of start, cheap_head and adapters"),
            (["cheap_head.cheap=large"], "cheap_head.expensive: expected another network than the cheap one"),
            (["frozen_training.seed=3"], "frozen_training.seed: the trials decide it"),
            (["source.training.output_dir=x"], "source.training.output_dir: the trials decide it"),
            (["start.levels=[0.5, 2]"], "levels.1: expected a number under 1, got 2"),
            (["joined=[{name: c, backbone: test_vit, reference: small}]"], "expected true, or weights"),
            (["joined=[{name: small, backbone: test_vit, reference: small, pretrained: true}]"], "'small' twice"),
            (["target.train.limit=1"], "target.train: expected at least 2 images to learn from, got 1"),
            (['target.train.classes=["3"]'], "target.train: .*at least 2 classes, got '3' only"),
            (["target.test.limit=1"], "target.test: .*at least 2 classes"),
            (['target.test.classes=["3", "9"]'], "classes of target.train, 4, 5, 6, 7, 8 and 1 more stand in one"),
        ],
    )
    def test_is_refused_before_any_training(self, overrides, message, recipe_file, tmp_path, capsys) -> None:
        code, out, err = command(capsys, recipe_file, *overrides, "--output", tmp_path / "run")
        assert (code, out) == (2, "")
        assert re.search(message, err), err
        assert not (tmp_path / "run" / "trainings").exists()

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (['target.train.classes=["3", "4"]', 'target.test.classes=["3", "4"]'], "the target lacks 5, 6"),
            (['target.train.classes=["8", "9"]', 'target.test.classes=["8", "9"]'], "one that knows none of them"),
            (["start.head=smal"], r"start.head: expected a network \(large, small\), a component's folder or a Hub id"),
            (["start.extractor=other/extractor-large"], "different|differ"),
            (["cheap_head.expensive=other/extractor-large"], "different|differ"),
        ],
    )
    def test_parts_that_do_not_fit(
        self, overrides, message, folder, recipe_file, tmp_path, capsys, monkeypatch
    ) -> None:
        finished = tmp_path / "run"
        shutil.copytree(folder / "trainings" / "seed0-source", finished / "trainings" / "seed0-source")
        self._another_space(tmp_path / "other")
        monkeypatch.chdir(tmp_path)
        recipe = read_recipe(FinetuneRecipe, recipe_file, overrides)
        (finished / "recipe.yaml").write_text(recipe_to_text(recipe))
        code, out, err = command(capsys, recipe_file, *overrides, "--output", finished, "--resume")
        assert (code, out) == (2, "")
        assert re.search(message, err), err
        assert not (finished / "results").exists()

    def _another_space(self, folder: Path) -> None:
        space = tc.CompatSpace(16, ["3", "4"], ["common_classes"], seed=5)
        space.finalize()
        tc.create_extractor("test_resnet", space, in_chans=1, img_size=16).save_pretrained(folder / "extractor-large")

    def test_sources_that_share_nothing(self, recipe_file) -> None:
        with pytest.raises(tc.errors.ConfigError, match=r"source.space.methods: .* share"):
            run_finetune(read_recipe(FinetuneRecipe, recipe_file, ["source.space.methods=[]"]), progress=False)


class TestStarts:
    def test_a_copied_head_keeps_what_it_knows_in_any_order(self) -> None:
        space = tc.CompatSpace(8)
        old = tc.TaskHead(space, ["a", "b", "c"], depth=2)
        nn.init.normal_(old.classifier.weight)
        nn.init.normal_(old.classifier.bias)
        features = torch.randn(5, 8)
        logits = new_head(tc.CompatSpace(8), ["new", "c", "a"], old)(features)
        assert torch.equal(logits[:, 0], torch.zeros(5))
        assert torch.allclose(logits[:, 1:], old(features)[:, [2, 0]])

    @pytest.mark.parametrize("trainable", ["full", "adapter", "frozen"])
    def test_what_is_not_to_learn_stays_and_the_given_part_always(self, trainable) -> None:
        data = tc.data.load_digits("train").subset(range(32))
        given = tc.create_extractor("test_resnet", tc.CompatSpace(8), in_chans=1, img_size=16, trainable="adapter")
        before = given.digest()
        extractor = copied(given, trainable)
        head = tc.TaskHead(extractor.space, data.class_names)
        member = tc.Member("a", extractor, head, data)
        tc.fit(extractor.space, [member], tc.TrainConfig(epochs=1, batch_size=16), progress=None)
        assert given.digest() == before
        assert not torch.equal(head.classifier.weight, torch.zeros_like(head.classifier.weight))
        same = [
            all(torch.equal(mine[key], theirs[key]) for key in mine)
            for mine, theirs in (
                (getattr(extractor, part).state_dict(), getattr(given, part).state_dict())
                for part in ("backbone", "interface")
            )
        ]
        assert same == {"full": [False, False], "adapter": [True, False], "frozen": [True, True]}[trainable]


class TestCost:
    def member(self, trainable: str, count: int = 48) -> tc.Member:
        data = tc.data.load_digits("train").subset(range(count))
        given = tc.create_extractor("test_resnet", tc.CompatSpace(8), in_chans=1, img_size=16)
        extractor = copied(given, trainable)
        return tc.Member("a", extractor, tc.TaskHead(extractor.space, data.class_names), data)

    def forward_flops(self, member: tc.Member) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            member.extractor.backbone.model.eval()(torch.zeros(1, 1, 16, 16))
        return counter.get_total_flops()

    def test_a_head_alone_costs_one_pass_and_three_small_products(self) -> None:
        member = self.member("frozen")
        cost = measure_cost(member, tc.TrainConfig(batch_size=16))
        width, classes = member.extractor.backbone.num_features, len(member.dataset.class_names)
        assert cost.setup_flops == 48 * self.forward_flops(member)
        # Features to D, D to logits, and the gradient of the head's weights; 2 for a multiplication and an addition.
        assert cost.step_flops == 2 * 16 * (width * 8 + 8 * classes + 8 * classes)

    def test_a_whole_network_costs_about_three_passes_a_step(self) -> None:
        member = self.member("full")
        cost = measure_cost(member, tc.TrainConfig(batch_size=16))
        assert cost.setup_flops == 0
        assert 2.5 < cost.step_flops / 16 / self.forward_flops(member) < 3.1

    def test_accumulation_saves_activations_and_no_operation(self) -> None:
        member = self.member("full", 128)
        whole, parts = (
            measure_cost(member, tc.TrainConfig(batch_size=128, grad_accum_steps=count)) for count in (1, 4)
        )
        assert parts.step_flops == whole.step_flops
        assert parts.peak_bytes < 0.8 * whole.peak_bytes

    def test_measuring_changes_nothing(self) -> None:
        member = self.member("full")
        before, state = member.extractor.digest(), torch.get_rng_state()
        first = measure_cost(member, tc.TrainConfig(batch_size=16))
        assert measure_cost(member, tc.TrainConfig(batch_size=16)) == first
        assert member.extractor.digest() == before
        assert torch.equal(torch.get_rng_state(), state)

    def test_augmentation_takes_the_cache_away(self) -> None:
        member = self.member("adapter")
        cost = measure_cost(member, tc.TrainConfig(batch_size=16, random_crop=1))
        assert cost.setup_flops == 0
        assert cost.step_flops > 16 * self.forward_flops(member)

    def test_live_bytes(self) -> None:
        weight = torch.zeros(1000, requires_grad=True)
        with LiveBytes([weight]) as live:
            assert live.peak == 4000
            first = weight + 1
            second = first.exp()  # autograd keeps its result
            view = second[:10]  # shares the storage
            assert live.now == 12_000
            del first
            assert live.now == 8000
            third = second.sum()
            del second, view
            assert live.now == 8004
            third.backward()
            del third
            assert live.now == 8000  # weight and its gradient
        assert 12_000 <= live.peak <= 20_004


class TestFigures:
    quick = Curve((0, 4, 8), (0.0, 1.0, 2.0), (0.5, 0.8, 0.9), step_flops=1e12)
    slow = Curve((0, 4, 8), (0.0, 2.0, 4.0), (0.1, 0.4, 0.8), setup_flops=1e12, step_flops=2e12, peak_bytes=2**21)

    def test_a_curve_is_read_back(self) -> None:
        assert Curve.from_dict(json.loads(json.dumps(self.slow.to_dict()))) == self.slow
        assert self.slow.flops == (0, 9e12, 17e12)

    def test_what_was_spent_until_a_level(self) -> None:
        assert spent([self.quick, self.slow], [0.8, 0.4], "seconds") == [1.0, 2.0]
        assert spent([self.quick, self.slow], [0.5, 0.9], "steps") == [0.0, math.inf]
        assert times_fewer([8, 4], [2, 2]) == 3
        assert math.isinf(times_fewer([8], [0]))
        assert math.isnan(times_fewer([math.inf], [math.inf]))

    def test_tables_say_never_and_at_once(self) -> None:
        table = section_table(START, {NEW_HEAD: [self.slow, self.slow], COMPATIBLE_HEAD: [self.quick, self.quick]})
        assert "0.800 ± 0.000" in table
        assert table.splitlines()[-1].endswith("| 2.0 x       |")
        table = section_table(START, {NEW_HEAD: [self.quick], COMPATIBLE_HEAD: [self.slow]})
        assert table.splitlines()[-1].endswith("| never                  | never   | never       |")
        table = section_table(ADAPTERS, {WHOLE: [self.slow], ADAPTER: [self.quick]})
        assert table.splitlines()[-1].endswith("| 2.1 x      | the usual way never          |")


@pytest.mark.parametrize("name", ["finetune_digits", "finetune_cifar10", "finetune_caltech101"])
def test_a_ready_recipe(name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    recipe = read_recipe(FinetuneRecipe, path)
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert first.endswith(f": timm-compat finetune scripts/recipes/{path.name}")
    assert recipe.output_dir == f"runs/{name}"
    assert len(recipe.seeds) == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_promises_on_real_digits() -> None:
    result = run_finetune(
        read_recipe(FinetuneRecipe, RECIPES / "finetune_digits.yaml", ["output_dir=null"]), progress=False
    )
    start, heads, adapters = (result.curves[section] for section in (START, CHEAP_HEAD, ADAPTERS))

    def mean(curves: list[Curve], place: int = -1) -> float:
        return sum(curve.accuracy[place] for curve in curves) / len(curves)

    levels = [curve.accuracy[-1] for curve in start[NEW_HEAD]]
    steps = {name: sum(spent(start[name], levels, "steps")) for name in (NEW_HEAD, COMPATIBLE_HEAD, SCRATCH)}
    assert steps[COMPATIBLE_HEAD] < steps[NEW_HEAD] < steps[SCRATCH]
    assert mean(start[COMPATIBLE_HEAD], 0) > mean(start[NEW_HEAD]) - 0.15
    assert mean(start[NEW_HEAD], 0) < 0.2

    assert all(a.flops[-1] * 2 < b.flops[-1] for a, b in zip(heads[CHEAP], heads[DIRECT], strict=True))
    assert mean(heads[CHEAP]) > mean(heads[DIRECT]) - 0.15

    for frozen in (ADAPTER, HEAD_ALONE):
        assert all(10 * a.flops[-1] < b.flops[-1] for a, b in zip(adapters[frozen], adapters[WHOLE], strict=True))
        assert mean(adapters[frozen]) > mean(adapters[WHOLE]) - 0.05

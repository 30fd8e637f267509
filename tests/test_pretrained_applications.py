"""The applications with pretrained networks that stay as they came: each image passes a backbone once."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import timm_compat as tc
from timm_compat.errors import ConfigError
from timm_compat.experiments import (
    AdaptRecipe,
    ClassifierTransferRecipe,
    FinetuneRecipe,
    run_adaptation,
    run_classifier_transfer,
    run_finetune,
)
from timm_compat.training import feature_cache

DIGITS: dict[str, Any] = {"dataset": "digits", "limit": 120}
TEST: dict[str, Any] = {"dataset": "digits", "split": "test", "limit": 100}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of classifiers over ImageNet's classes, by architecture."""
    files = {}
    for name in ("test_resnet", "test_efficientnet"):
        torch.manual_seed(0)
        files[name] = str(tmp_path_factory.mktemp("weights") / f"{name}.safetensors")
        save_file(timm.create_model(name).state_dict(), files[name])
    return files


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images every pass of a frozen backbone saw."""
    counts: list[int] = []
    passes = feature_cache.run_networks

    def counted(networks: Any, images: Any, *arguments: Any, **options: Any) -> Any:
        counts.append(len(images) * len(networks))
        return passes(networks, images, *arguments, **options)

    monkeypatch.setattr(feature_cache, "run_networks", counted)
    return counts


def adapt_recipe(checkpoints: dict[str, str], **changes: Any) -> AdaptRecipe:
    settings: dict[str, Any] = {
        "source": {"train": {**DIGITS, "part": "1/2"}, "test": TEST},
        "target": {"train": {**DIGITS, "part": "2/2"}, "test": TEST, "shift": ["faded"]},
        "backbone": "test_resnet",
        "weights": checkpoints["test_resnet"],
        "trainable": "adapter",
        "img_size": 32,
        "training": {"epochs": 1, "batch_size": 40},
        "refinement": {"epochs": 1, "round_epochs": 1, "rounds": 2, "lr": 1e-4},
    }
    return AdaptRecipe(**{**settings, **changes})


class TestAdapt:
    @pytest.mark.slow
    def test_every_mode_leaves_the_backbone_as_it_came(self, weights: dict[str, str], tmp_path: Path) -> None:
        recipe = adapt_recipe(weights, output_dir=str(tmp_path / "run"))
        result = run_adaptation(recipe, progress=False)
        assert list(result.figures["modes"]) == [*recipe.chosen_modes, "selected"]
        assert "normalized" in recipe.chosen_modes
        kept = load_file(tmp_path / "run" / "components" / "seed0" / "extractor-target" / "model.safetensors")
        given = load_file(weights["test_resnet"])
        learnt = [name for name in kept if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
        assert all(torch.equal(kept[name], given[name]) for name in learnt)

    def test_source_is_a_linear_probe_and_the_target_is_normalised_by_itself(self, weights: dict[str, str]) -> None:
        modes = ["source_only", "normalized", "target_supervised"]
        records = run_adaptation(adapt_recipe(weights, modes=modes), progress=False).figures["modes"]
        source, normalized, ceiling = (records[mode][0]["target"] for mode in modes)
        # Less contrast moves every feature's mean and shrinks its spread; the way back is the target's own.
        assert source < normalized - 0.1
        assert records["source_only"][0]["source"] > 0.6
        assert ceiling > 0.6

    def test_an_image_passes_a_backbone_once(self, weights: dict[str, str], seen: list[int], tmp_path: Path) -> None:
        modes = ["source_only", "normalized", "pseudo_labels"]
        training = {"batch_size": 40, "cache_dir": str(tmp_path / "features")}
        first = run_adaptation(adapt_recipe(weights, modes=modes, training=training), progress=False)
        assert sum(seen) == 120 + 120 + 100 + 100
        seen.clear()
        parts = {side: {"train": {**DIGITS, "part": "1/2", "limit": 60}, "test": TEST} for side in ("source", "target")}
        again = adapt_recipe(weights, modes=modes, training=training, source=parts["source"], target=parts["target"])
        run_adaptation(again, progress=False)
        assert sum(seen) == 0  # other draws of images that were seen
        same = run_adaptation(adapt_recipe(weights, modes=modes, training=training), progress=False)
        assert sum(seen) == 0
        assert same.figures == first.figures

    @pytest.mark.slow
    def test_a_given_source_stays_frozen_too(self, weights: dict[str, str], tmp_path: Path) -> None:
        extractor, _ = tc.split("test_resnet", weights=weights["test_resnet"], img_size=32)
        head = tc.linear_probe(extractor, tc.data.load_digits("train").with_channels(3))
        given = {"extractor": extractor.save_pretrained(tmp_path / "e"), "head": head.save_pretrained(tmp_path / "h")}
        recipe = adapt_recipe(
            weights, weights=None, modes=["source_only", "normalized", "pseudo_labels"], output_dir=str(tmp_path / "r"),
            source_extractor=str(given["extractor"]), source_head=str(given["head"]), select="last",
        )  # fmt: skip
        assert run_adaptation(recipe, progress=False).selected == ("pseudo_labels",)
        target = tc.CompatExtractor.from_pretrained(tmp_path / "r" / "components" / "seed0" / "extractor-target")
        pairs = zip(target.backbone.parameters(), extractor.backbone.parameters(), strict=True)
        assert all(one.equal(other) for one, other in pairs)
        assert not target.interface.projection.weight.equal(extractor.interface.projection.weight)

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"weights": None}, "trainable: a backbone that stays as it is needs pretrained: true, or weights"),
            ({"pretrained": True}, "weights: expected a checkpoint or pretrained: true, got both"),
            ({"training": {"hflip": 0.5}}, "training: features are computed once, without augmentation"),
            ({"trainable": "full", "modes": ["normalized"]}, "modes: normalized needs trainable: adapter"),
        ],
    )
    def test_contradictions_are_refused(self, weights: dict[str, str], changes: dict, expected: str) -> None:
        with pytest.raises(ConfigError, match=expected):
            adapt_recipe(weights, **changes)


def network(name: str, backbone: str, checkpoints: dict[str, str], **changes: Any) -> dict[str, Any]:
    given = {
        "name": name,
        "backbone": backbone,
        "weights": checkpoints[backbone],
        "trainable": "frozen",
        "img_size": 32,
    }
    return {**given, "data": DIGITS, "test": TEST, **changes}


class TestTransfer:
    @pytest.mark.slow
    def test_heads_run_on_networks_as_they_came(self, weights: dict[str, str], seen: list[int], tmp_path: Path) -> None:
        networks = [network("a", "test_resnet", weights), network("b", "test_efficientnet", weights)]
        recipe = ClassifierTransferRecipe(
            transfer={"networks": networks}, output_dir=str(tmp_path / "run"), seeds=[0, 1]
        )
        result = run_classifier_transfer(recipe, progress=False)
        assert list(result.figures["transfer"]) == ["apart", "classes", "joined", "retrained"]
        apart, joined, retrained = (result.matrix(way).mean for way in ("apart", "joined", "retrained"))
        assert (apart.diagonal() == joined.diagonal()).all()
        assert joined[0, 1] > 0.5  # of ten classes; random classifiers say nothing, images bring networks together
        assert math.isnan(apart[0, 1])  # 256 features for a head of 96
        assert retrained.min() > 0.5
        assert sum(seen) <= 2 * 2 * (120 + 100)

    @pytest.mark.slow
    def test_an_upgrade_of_networks_as_they_came(self, weights: dict[str, str], tmp_path: Path) -> None:
        even = {"name": "even", "data": {**DIGITS, "classes": list("02468")}, "test": TEST}
        upgrade = {
            "old": network("old", "test_resnet", weights), "heads": [even],
            "new": network("new", "test_efficientnet", weights),
        }  # fmt: skip
        recipe = ClassifierTransferRecipe(upgrade=upgrade, output_dir=str(tmp_path / "run"))
        result = run_classifier_transfer(recipe, progress=False)
        ways = ["unconstrained", "classes", "joined", "joined_each", "retrained"]
        assert list(result.figures["upgrade"]) == ways
        joined, each = (result.values(way, "even")[0] for way in ("joined", "joined_each"))
        # Of five classes. The classifiers are random, and their classes mislead; a head's own images tell so.
        assert each > joined + 0.2
        assert each > 0.7
        assert result.values("unconstrained", "even") == []  # a head of 256 features, a network of 96
        assert result.values("retrained", "labels") == [120 + 120]
        parts = tmp_path / "run" / "components" / "seed0"
        made, head, test = (
            tc.CompatExtractor.from_pretrained(parts / "extractor-joined"),
            tc.TaskHead.from_pretrained(parts / "head-even"),
            tc.data.load_dataset("digits", split="test", limit=100, seed=0).with_channels(3),
        )
        matrix = tc.recombination_matrix({"joined": made}, {"even": head}, test)
        assert matrix.accuracy[0, 0] == pytest.approx(joined)
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["upgrade"]["old"]["even"][0] > 0.5

    @pytest.mark.slow
    def test_an_upgrade_of_parts_that_exist(self, weights: dict[str, str], tmp_path: Path) -> None:
        extractor, _ = tc.split("test_resnet", weights=weights["test_resnet"], img_size=32)
        head = tc.linear_probe(extractor, tc.data.load_digits("train").subset(range(200)).with_channels(3))
        parts = {"space": extractor.space, "old": extractor, "digits": head}
        places = {name: str(part.save_pretrained(tmp_path / name)) for name, part in parts.items()}
        digits = {"name": "digits", "folder": places["digits"], "data": DIGITS, "test": TEST}
        new = network("new", "test_resnet", weights)
        recipe = ClassifierTransferRecipe(
            space={"folder": places["space"]}, upgrade={"extractor": places["old"], "heads": [digits], "new": new}
        )
        result = run_classifier_transfer(recipe, progress=False)
        test = tc.data.load_dataset("digits", split="test", limit=100, seed=0).with_channels(3)
        native = tc.recombination_matrix({"old": extractor}, {"digits": head}, test).accuracy[0, 0]
        assert result.figures["upgrade"]["joined"][0]["old"]["digits"] == pytest.approx(native)
        # The same network once more: images bring it back to where it came from.
        assert result.values("joined_each", "digits")[0] > native - 0.1

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"weights": None}, "networks.0.pretrained: expected true, or weights"),
            ({"trainable": "full"}, "networks.0.trainable: expected 'frozen' for all networks or none, got 'full'"),
            ({"crop_pct": 0.9}, "networks.0: a network that stays as it came has timm's crop_pct"),
        ],
    )
    def test_contradictions_are_refused(self, weights: dict[str, str], changes: dict, expected: str) -> None:
        networks = [network("a", "test_resnet", weights, **changes), network("b", "test_efficientnet", weights)]
        with pytest.raises(ConfigError, match=expected):
            ClassifierTransferRecipe(transfer={"networks": networks})

    def test_ways_that_need_other_networks_are_refused(self, weights: dict[str, str]) -> None:
        frozen = [network("a", "test_resnet", weights), network("b", "test_efficientnet", weights)]
        learning = [{**one, "trainable": "full"} for one in frozen]
        for networks, way in ((frozen, "one_space"), (learning, "classes")):
            with pytest.raises(ConfigError, match=f"ways: {way} needs networks"):
                ClassifierTransferRecipe(transfer={"networks": networks, "ways": [way]})


@pytest.mark.slow
def test_a_head_from_a_split_network_runs_on_one_that_joins_it(weights: dict[str, str]) -> None:
    recipe = FinetuneRecipe(
        target={"train": {**DIGITS, "limit": 200}, "test": TEST},
        split=[{"name": "cheap", "backbone": "test_resnet", "weights": weights["test_resnet"], "img_size": 32}],
        joined=[
            {"name": "large", "backbone": "test_resnet", "reference": "cheap", "weights": weights["test_resnet"]}
            | {"img_size": 40}
        ],
        cheap_head={"cheap": "cheap", "expensive": "large"},
        frozen_training={"epochs": 8, "batch_size": 40, "lr": 1e-2},
    )
    (curves,) = run_finetune(recipe, progress=False).curves.values()
    ends = {way: curve.accuracy[-1] for way, (curve,) in curves.items()}
    assert ends["trained and run on cheap"] > 0.5
    # The same random network at another size: half of ten classes is not kept, yet far more than chance.
    assert ends["trained on cheap, run on expensive"] > 0.2
    steps = {way: curve.step_flops for way, (curve,) in curves.items()}
    assert steps["trained on cheap, run on expensive"] == steps["trained and run on cheap"]
    setup = {way: curve.setup_flops for way, (curve,) in curves.items()}
    assert setup["trained on expensive"] > 1.3 * setup["trained on cheap, run on expensive"]


def test_a_network_is_split_or_trained_but_not_both(weights: dict[str, str]) -> None:
    given = {"name": "a", "backbone": "test_resnet", "weights": weights["test_resnet"]}
    target = {"train": DIGITS, "test": TEST}
    with pytest.raises(ConfigError, match=r"joined\.0\.name: expected every name once, got 'a' twice"):
        FinetuneRecipe(target=target, split=[given], joined=[{**given, "reference": "a"}], adapters={"extractor": "a"})
    with pytest.raises(ConfigError, match=r"split\.0\.pretrained: expected true, or weights"):
        FinetuneRecipe(target=target, split=[{**given, "weights": None}], adapters={"extractor": "a"})

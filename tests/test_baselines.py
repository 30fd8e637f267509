"""Baselines: two networks whose features differ by a known map, and other libraries' solutions."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import LogisticRegression

import timm_compat as tc
from timm_compat.evaluation import baselines, post_hoc
from timm_compat.evaluation.baselines import BaselineConfig, measure_baselines


def with_interface(extractor: tc.CompatExtractor, space: tc.CompatSpace, turn: torch.Tensor) -> tc.CompatExtractor:
    """The same backbone; its features are those of ``extractor``, multiplied by ``turn``."""
    weight, bias = extractor.interface.folded()
    other = tc.CompatExtractor(extractor.backbone, space)
    other.interface.set_linear(turn.double() @ weight, turn.double() @ bias)
    return other.eval()


def fitted_head(extractor: tc.CompatExtractor, dataset: tc.data.ArrayDataset) -> tc.TaskHead:
    features = tc.extract_features(extractor, dataset).numpy()
    fitted = LogisticRegression(max_iter=5000).fit(features, dataset.labels.numpy())
    head = tc.TaskHead(extractor.space, dataset.class_names)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.from_numpy(fitted.coef_))
        head.classifier.bias.copy_(torch.from_numpy(fitted.intercept_))
    return head.eval()


@pytest.fixture(scope="module")
def sets() -> tuple[tc.data.ArrayDataset, tc.data.ArrayDataset]:
    return tc.data.load_digits("train").subset(range(600)), tc.data.load_digits("test")


@pytest.fixture(scope="module")
def parts(sets) -> tuple[dict, dict]:
    """Network a with a fitted head, and b, whose features are those of a, rotated."""
    torch.manual_seed(0)
    first, second = (tc.CompatSpace(24, sets[0].class_names, ["common_classes"], seed=seed) for seed in (0, 1))
    for space in (first, second):
        space.finalize()
    raw = tc.create_extractor("test_resnet", first, in_chans=1, img_size=24).eval()
    features = tc.extract_features(raw, sets[0])
    a = with_interface(raw, first, torch.diag(1 / features.std(dim=0)))
    turn = torch.linalg.qr(torch.randn(24, 24)).Q
    b = with_interface(a, second, turn)
    return {"a": a, "b": b}, {"a": fitted_head(a, sets[0]), "b": fitted_head(b, sets[0])}


@pytest.fixture(scope="module")
def measured(parts, sets) -> dict[str, baselines.Baseline]:
    config = BaselineConfig(anchors=64)
    found = measure_baselines(*parts, *sets, config=config, cross_space=True)
    return {baseline.name: baseline for baseline in found}


class TestRotatedTwins:
    def test_as_they_are_they_do_not_fit(self, parts, sets) -> None:
        matrix = tc.recombination_matrix(*parts, sets[1], cross_space=True)
        assert matrix.native_accuracy > 0.65
        assert matrix.recombined_accuracy < 0.4

    @pytest.mark.parametrize("name", ["procrustes", "least_squares"])
    def test_a_fitted_map_restores_the_head_s_own_accuracy(self, name, parts, sets, measured) -> None:
        own = tc.recombination_matrix(*parts, sets[1], cross_space=True).accuracy
        found = measured[name].accuracy
        assert np.isnan(np.diag(found)).all()
        assert found[1, 0] == pytest.approx(own[0, 0], abs=0.005)
        assert found[0, 1] == pytest.approx(own[1, 1], abs=0.005)

    def test_relative_features_do_not_know_rotations(self, measured) -> None:
        found = measured["relative"].accuracy
        assert found[1, 0] == pytest.approx(found[0, 0], abs=0.005)
        assert found[0, 0] > 0.45

    @pytest.mark.parametrize("name", ["stitching", "retrained_head"])
    def test_labels_restore_it_as_well(self, name, parts, sets, measured) -> None:
        own = tc.recombination_matrix(*parts, sets[1], cross_space=True).accuracy
        assert measured[name].accuracy[1, 0] == pytest.approx(own[0, 0], abs=0.1)

    def test_each_says_what_it_needs(self, measured) -> None:
        assert tuple(measured) == baselines.BASELINES
        assert baselines.PAIRED in measured["procrustes"].needs
        assert baselines.LABELS in measured["retrained_head"].needs
        facts = json.loads(json.dumps(measured["procrustes"].to_dict()))
        assert facts["accuracy"][0][0] is None
        assert facts["train_images"] == 600

    def test_features_that_are_at_hand_give_the_same(self, parts, sets, measured) -> None:
        features = {name: tc.extract_features(extractor, sets[1]) for name, extractor in parts[0].items()}
        (again,) = measure_baselines(*parts, *sets, names=["procrustes"], cross_space=True, test_features=features)
        assert np.array_equal(again.accuracy, measured["procrustes"].accuracy, equal_nan=True)

    def test_parts_stay_as_they_were(self, parts, sets) -> None:
        head = parts[1]["a"].train()
        before = head.classifier.weight.clone()
        measure_baselines(
            *parts, *sets, names=["stitching"], config=BaselineConfig(stitching_epochs=1), cross_space=True
        )
        assert torch.equal(head.classifier.weight, before)
        assert head.classifier.weight.grad is None
        assert head.training


class TestPairsWithoutABaseline:
    def test_heads_without_an_extractor_and_unknown_classes(self, parts, sets) -> None:
        extractors, heads = parts
        few = tc.TaskHead(extractors["a"].space, ["0", "1"])
        strange = tc.TaskHead(extractors["a"].space, ["p", "q"])
        found = measure_baselines(
            {"a": extractors["a"]}, {"b": heads["b"], "few": few, "strange": strange}, *sets,
            names=["procrustes", "retrained_head"], cross_space=True,
        )  # fmt: skip
        assert np.isnan(found[0].accuracy).all()  # nobody is native to any of these heads
        assert found[1].accuracy[0, 1] > 0.9  # two digits are easily told apart
        assert np.isnan(found[1].accuracy[0, 2])

    def test_labels_that_the_training_images_lack(self, parts, sets) -> None:
        one_class = sets[0].of_classes(["3"])
        (found,) = measure_baselines(*parts, one_class, sets[1], names=["retrained_head"], cross_space=True)
        assert np.isnan(found.accuracy).all()


class TestMaps:
    def test_procrustes_is_that_of_scipy(self) -> None:
        draw = np.random.default_rng(0)
        x, y = draw.normal(size=(50, 6)), draw.normal(size=(50, 6))
        found = post_hoc.procrustes(torch.from_numpy(x), torch.from_numpy(y))
        centred = [side - side.mean(axis=0) for side in (x, y)]
        turn, total = orthogonal_procrustes(*centred)
        expected = turn.T * total / (centred[0] ** 2).sum()
        assert found.weight.numpy() == pytest.approx(expected)
        assert found(torch.from_numpy(x).float()).mean(dim=0).numpy() == pytest.approx(y.mean(axis=0), abs=1e-5)

    @pytest.mark.parametrize("sizes", [(6, 4), (4, 6)])
    def test_procrustes_between_unequal_dimensions_keeps_angles(self, sizes) -> None:
        draw = torch.Generator().manual_seed(0)
        x, y = (torch.randn(80, size, generator=draw) for size in sizes)
        weight = post_hoc.procrustes(x, y).weight
        small = min(sizes)
        gram = weight @ weight.T if sizes[1] == small else weight.T @ weight
        assert gram / gram[0, 0] == pytest.approx(torch.eye(small, dtype=torch.float64).numpy(), abs=1e-9)

    def test_least_squares_is_that_of_numpy_where_nothing_is_noise(self) -> None:
        draw = np.random.default_rng(0)
        x = draw.normal(size=(200, 5))
        y = x @ draw.normal(size=(5, 3)) + 2.0
        found = post_hoc.least_squares(torch.from_numpy(x), torch.from_numpy(y))
        expected = np.linalg.lstsq(np.c_[x, np.ones(200)], y, rcond=None)[0]
        assert pytest.approx(expected[:5], abs=1e-3) == found.weight.numpy().T
        assert found.bias.numpy() == pytest.approx(expected[5], abs=1e-3)

    def test_relative_features_by_hand(self) -> None:
        found = post_hoc.relative_features(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        assert found.tolist()[0] == pytest.approx([0.6, 0.8])


class TestBadInput:
    def test_names_numbers_and_levels(self, parts, sets) -> None:
        with pytest.raises(tc.errors.ConfigError, match="procrustes, least_squares"):
            measure_baselines(*parts, *sets, names=["magic"], cross_space=True)
        with pytest.raises(tc.errors.ConfigError, match="anchors"):
            BaselineConfig(anchors=0)
        with pytest.raises(tc.errors.SpaceMismatchError):
            measure_baselines(*parts, *sets)
        with pytest.raises(tc.errors.DataError, match="at least 20, got 10 and 10"):
            measure_baselines(*parts, sets[0].subset(range(10)), sets[1], names=["procrustes"], cross_space=True)
        space = tc.CompatSpace(8, ["0", "1"], ["common_classes"], level="map")
        extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=32)
        with pytest.raises(tc.errors.ConfigError, match='level "map"'):
            measure_baselines({"m": extractor}, {"m": tc.TaskHead(space, ["0", "1"])}, *sets)

"""Scores and the recombination matrix."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import timm_compat as tc
from timm_compat.evaluation import scores
from timm_compat.evaluation.baselines import retrained_head_accuracy
from timm_compat.evaluation.columns import side_by_side


class Oracle(tc.CompatExtractor):
    """Features that are the first pixels of the image, so that accuracies are known by hand; counts its passes."""

    passes = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += len(images)
        return images.flatten(1)[:, : self.space.feature_dim]


class Swapped(Oracle):
    """The first two features exchanged."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:, [1, 0, 2]]


def extractor_mean(space: tc.CompatSpace) -> float:
    return float(make(space).preprocess.mean)


def extractor_std(space: tc.CompatSpace) -> float:
    return float(make(space).preprocess.std)


def make(space: tc.CompatSpace, cls=tc.CompatExtractor) -> tc.CompatExtractor:
    extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=4)
    return cls(extractor.backbone, space)


def reading_head(space: tc.CompatSpace, names: list[str], order: list[int]) -> tc.TaskHead:
    """A head whose logit k is feature order[k]."""
    head = tc.TaskHead(space, names)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.eye(space.feature_dim)[order])
        head.classifier.bias.zero_()
    return head


@pytest.fixture
def space() -> tc.CompatSpace:
    return tc.CompatSpace(3, ["x", "y", "z"], ["common_classes"])


@pytest.fixture
def dataset() -> tc.data.ArrayDataset:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    images = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    images[torch.arange(8), 0, 0, labels] = 200
    return tc.data.ArrayDataset(images, labels, ("x", "y", "z"))


class TestMatrix:
    def test_matches_classes_by_name(self, space, dataset) -> None:
        heads = {
            "same": reading_head(space, ["x", "y", "z"], [0, 1, 2]),
            "other order": reading_head(space, ["z", "x", "y"], [2, 0, 1]),
            "subset": reading_head(space, ["y", "x"], [1, 0]),
            "wrong": reading_head(space, ["x", "y", "z"], [1, 0, 2]),
            "stranger": reading_head(space, ["p", "q"], [0, 1]),
        }
        matrix = tc.recombination_matrix({"same": make(space, Oracle)}, heads, dataset)
        assert matrix.accuracy[0, :4].tolist() == [1.0, 1.0, 1.0, 0.25]
        assert np.isnan(matrix.accuracy[0, 4])
        assert matrix.counts == (8, 8, 6, 8, 0)
        assert matrix.chance.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 2, 1 / 3, 1 / 2])
        assert matrix.native.tolist() == [[True, False, False, False, False]]

    def test_each_extractor_sees_the_images_once(self, space, dataset) -> None:
        extractor = make(space, Oracle)
        heads = {str(number): tc.TaskHead(space, ["x", "y", "z"]) for number in range(4)}
        tc.recombination_matrix({"a": extractor}, heads, dataset)
        assert extractor.passes == len(dataset)

    def test_leaves_training_mode_alone(self, space, dataset) -> None:
        extractor, head = make(space).train(), tc.TaskHead(space, ["x", "y", "z"], drop_rate=0.5).train()
        before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
        tc.recombination_matrix({"a": extractor}, {"a": head}, dataset)
        assert extractor.training
        assert head.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in extractor.state_dict().items())

    def test_passes_are_n_for_n_extractors_and_m_heads(self, space, dataset) -> None:
        extractors = {str(number): make(space, Oracle) for number in range(3)}
        heads = {str(number): tc.TaskHead(space, ["x", "y", "z"]) for number in range(5)}
        tc.recombination_matrix(extractors, heads, dataset)
        assert sum(extractor.passes for extractor in extractors.values()) == 3 * len(dataset)

    def test_equals_composed_models_one_by_one(self) -> None:
        test = tc.data.load_digits("test").subset(range(300))  # more than one batch
        space = tc.CompatSpace(8, test.class_names, ["common_classes"])
        extractors = {
            name: tc.create_extractor(name, space, in_chans=1, img_size=16) for name in ("test_resnet", "test_vit")
        }
        heads = {name: tc.TaskHead(space, test.class_names) for name in ("test_resnet", "other")}
        for head in heads.values():
            torch.nn.init.normal_(head.classifier.weight, generator=torch.Generator().manual_seed(1))
        matrix = tc.recombination_matrix(extractors, heads, test)
        for row, extractor in enumerate(extractors.values()):
            for column, head in enumerate(heads.values()):
                with torch.no_grad():
                    logits = tc.compose(extractor, head).eval()(extractor.preprocess(test.images))
                right = (logits.argmax(dim=1) == test.labels).double().mean()
                assert matrix.accuracy[row, column] == pytest.approx(float(right), abs=1e-9)

    def test_image_files_are_seen_as_each_extractor_asks(self, tmp_path) -> None:
        digits = tc.data.load_digits("test").subset(range(30))
        for number, (image, label) in enumerate(zip(digits.images[:, 0].numpy(), digits.labels.tolist(), strict=True)):
            folder = tmp_path / str(label)
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
        files = tc.data.load_dataset("folder", tmp_path, in_chans=1)
        space = tc.CompatSpace(8, files.class_names, ["common_classes"])
        extractors = {
            str(size): tc.create_extractor("test_resnet", space, in_chans=1, img_size=size) for size in (16, 24)
        }
        head = tc.TaskHead(space, files.class_names)
        torch.nn.init.normal_(head.classifier.weight, generator=torch.Generator().manual_seed(1))
        together = tc.recombination_matrix(extractors, {"h": head}, files)
        for row, (name, extractor) in enumerate(extractors.items()):
            alone = tc.recombination_matrix({name: extractor}, {"h": head}, files)
            assert together.accuracy[row] == alone.accuracy[0]
            logits = head(tc.extract_features(extractor, files))
            right = (logits.argmax(dim=1) == files.labels).double().mean()
            assert together.accuracy[row, 0] == pytest.approx(float(right))

    def test_intervals_counts_flips_and_calibration(self, space, dataset) -> None:
        matrix = tc.recombination_matrix(
            {"good": make(space, Oracle), "swapped": make(space, Swapped)},
            {"good": reading_head(space, ["x", "y", "z"], [0, 1, 2]), "part": reading_head(space, ["x", "y"], [0, 1])},
            dataset,
        )
        assert matrix.accuracy.tolist() == [[1.0, 1.0], [0.25, 0.0]]
        assert matrix.cell_counts.tolist() == [[8, 6], [8, 6]]
        low, high = matrix.intervals()
        assert low[1, 0] == pytest.approx(0.0715, abs=1e-3)
        assert high[1, 0] == pytest.approx(0.5907, abs=1e-3)
        assert matrix.negative_flips()[:, 0].tolist() == [0, 0.75]
        assert np.isnan(matrix.negative_flips()[:, 1]).all()  # no extractor is native to "part"
        assert matrix.negative_flips(relative=True)[1, 0] == pytest.approx(1.0)
        assert matrix.compatibility[1, 0] == pytest.approx((0.25 - 1 / 3) / (1 - 1 / 3))
        # features of 200 / 255: every confidence is the same, so the error is its distance to the accuracy
        scaled = (200 / 255 - extractor_mean(space)) / extractor_std(space)
        zero = (0 - extractor_mean(space)) / extractor_std(space)
        sure = 1 / (1 + 2 * np.exp(zero - scaled))
        assert matrix.calibration_errors()[:, 0] == pytest.approx([1 - sure, abs(0.25 - sure)], abs=1e-5)

    def test_cells_of_different_spaces_are_marked(self, space, dataset) -> None:
        other = tc.CompatSpace(3, ["x", "y", "z"], ["rotation"])
        wide = tc.CompatSpace(5, ["x", "y", "z"], ["rotation"])
        heads = {
            "own": reading_head(space, ["x", "y", "z"], [0, 1, 2]),
            "other": reading_head(other, ["x", "y", "z"], [0, 1, 2]),
            "wide": tc.TaskHead(wide, ["x", "y", "z"]),
            "single": tc.TaskHead(space, ["x"]),
            "strange": tc.TaskHead(space, ["x", "q"]),
        }
        matrix = tc.recombination_matrix({"own": make(space, Oracle)}, heads, dataset, cross_space=True)
        assert matrix.cross_space.tolist() == [[False, True, True, False, False]]
        assert matrix.accuracy[0, :2].tolist() == [1.0, 1.0]
        assert np.isnan(matrix.accuracy[0, 2:]).all()
        assert matrix.reasons == {
            (0, 2): "3 features for a head of 5",
            (0, 3): "the head knows 'x' only, so it is always right",
            (0, 4): "only 'x' in common with the data",
        }
        text = matrix.to_markdown()
        assert "1.000 †" in text
        assert "† extractor and head of different spaces" in text
        assert "n/a: 3 features for a head of 5 (own / wide)" in text
        facts = json.loads(json.dumps(matrix.to_dict()))
        assert facts["cell_counts"] == [[8, 8, 0, 0, 0]]
        assert facts["not_measured"][0] == {"row": "own", "column": "wide", "reason": "3 features for a head of 5"}

    def test_refuses_another_space_unless_asked(self, space, dataset) -> None:
        other = tc.CompatSpace(3, ["x", "y", "z"], ["rotation"])
        parts = {"a": make(space)}, {"b": tc.TaskHead(other, ["x", "y", "z"])}
        with pytest.raises(tc.errors.SpaceMismatchError, match="methods"):
            tc.recombination_matrix(*parts, dataset)
        assert tc.recombination_matrix(*parts, dataset, cross_space=True).accuracy.shape == (1, 1)

    def test_refuses_nothing_to_measure(self, space, dataset) -> None:
        extractor, head = make(space), tc.TaskHead(space, ["p"])
        with pytest.raises(tc.errors.DataError, match="a head knows"):
            tc.recombination_matrix({"a": extractor}, {"a": head}, dataset)
        with pytest.raises(tc.errors.DataError, match="expected images, got an empty one"):
            tc.recombination_matrix({"a": extractor}, {"a": head}, dataset.subset([]))
        with pytest.raises(tc.errors.DataError, match="at least 2 classes, got 'x' only"):
            tc.recombination_matrix({"a": extractor}, {"a": head}, dataset.subset([0, 3]))
        with pytest.raises(tc.errors.ConfigError, match="by name"):
            tc.recombination_matrix({}, {"a": head}, dataset)
        broken = reading_head(space, ["x", "y", "z"], [0, 1, 2])
        broken.classifier = torch.nn.Linear(3, 2)
        with pytest.raises(tc.errors.ConfigError, match="one logit per class, 3, got 2"):
            tc.recombination_matrix({"a": extractor}, {"a": broken}, dataset)

    def test_markdown_json_and_picture(self, tmp_path) -> None:
        matrix = tc.RecombinationMatrix(
            np.array([[0.9, 0.5], [np.nan, 0.75]]),
            ("a", "b"),
            ("a", "b"),
            np.eye(2, dtype=bool),
            np.full(2, 0.1),
            (4, 4),
        )
        table = matrix.to_markdown().splitlines()
        assert [cell.strip() for cell in table[2].split("|")[1:-1]] == ["a", "**0.900**", "0.500"]
        matrix.save_json(tmp_path / "matrix.json")
        assert json.loads((tmp_path / "matrix.json").read_text())["accuracy"] == [[0.9, 0.5], [None, 0.75]]
        figure, axis = matrix.plot(title="two")
        assert [text.get_text() for text in axis.texts] == ["0.90", "0.50", "n/a", "0.75"]
        assert matrix.plot(axis)[0] is figure
        plt.close(figure)


class TestOfMembers:
    def test_they_bring_their_parts(self, space, dataset) -> None:
        head = reading_head(space, ["x", "y", "z"], [0, 1, 2])
        members = [tc.Member("a", make(space, Oracle).eval(), head, dataset)]
        members.append(tc.Member("b", make(space, Swapped).eval(), None, dataset))
        found = tc.recombination_matrix(members, dataset=dataset)
        parts = {member.name: member.extractor for member in members}, {"a": head}
        assert found.to_dict() == tc.recombination_matrix(*parts, dataset).to_dict()
        assert (found.rows, found.columns) == (("a", "b"), ("a",))

    def test_without_images(self, space, dataset) -> None:
        with pytest.raises(tc.errors.ConfigError, match="members and dataset="):
            tc.recombination_matrix([tc.Member("a", make(space), None, dataset)])


class TestSideBySide:
    def test_columns_measured_on_images_of_their_own(self, space, dataset) -> None:
        extractors = {"a": make(space, Oracle), "b": make(space, Swapped)}
        head = reading_head(space, ["x", "y", "z"], [0, 1, 2])
        other = tc.CompatSpace(3, ["x", "y", "z"], ["rotation"])
        crossed = {"c": reading_head(other, ["x", "y", "z"], [0, 1, 2]), "d": tc.TaskHead(space, ["x"])}
        parts = [
            tc.recombination_matrix(extractors, {"a": head}, dataset.subset(range(6))),
            tc.recombination_matrix(extractors, crossed, dataset, cross_space=True),
        ]
        found = side_by_side(parts)
        assert found.columns == ("a", "c", "d")
        assert found.counts == (6, 8, 4)
        assert found.accuracy[:, :2].tolist() == [[1, 1], [pytest.approx(1 / 3), 0.25]]
        assert found.cross_space.tolist() == [[False, True, False]] * 2
        assert set(found.reasons) == {(0, 2), (1, 2)}
        assert found.to_markdown().count("†") == 3
        with pytest.raises(tc.errors.ConfigError, match="without predictions"):
            found.negative_flips()
        with pytest.raises(tc.errors.ConfigError, match="same rows"):
            side_by_side([])


class TestSeeds:
    def test_mean_and_deviation_of_every_cell(self) -> None:
        def matrix(values: list[list[float]]) -> tc.RecombinationMatrix:
            native = np.eye(2, dtype=bool)
            return tc.RecombinationMatrix(np.array(values), ("a", "b"), ("a", "b"), native, np.full(2, 0.1), (4, 4))

        seeds = [[[0.9, 0.5], [np.nan, 0.7]], [[0.8, 0.6], [0.4, 0.7]], [[0.7, 0.7], [np.nan, 0.7]]]
        found = tc.evaluation.over_seeds([matrix(values) for values in seeds])
        assert found.mean == pytest.approx(np.array([[0.8, 0.6], [0.4, 0.7]]))
        assert found.std[0].tolist() == pytest.approx([0.1, 0.1])
        assert np.isnan(found.std[1, 0])
        assert found.std[1, 1] == pytest.approx(0, abs=1e-8)
        assert found.measured.tolist() == [[3, 3], [1, 3]]
        assert found.native_accuracy == pytest.approx([0.8, 0.75, 0.7])
        assert found.recombined_accuracy == pytest.approx([0.5, 0.5, 0.7])
        assert found.interval() == pytest.approx((0.5, 0.7))
        assert "**0.800 ± 0.100**" in found.to_markdown()
        assert json.loads(json.dumps(found.to_dict()))["std"][1][0] is None
        with pytest.raises(tc.errors.ConfigError, match="at least one"):
            tc.evaluation.over_seeds([])


class TestScores:
    def test_hand_worked_matrix(self) -> None:
        matrix, native = np.array([[0.9, 0.5], [np.nan, 0.7]]), np.eye(2, dtype=bool)
        assert scores.native_accuracy(matrix, native) == pytest.approx(0.8)
        assert scores.recombined_accuracy(matrix, native) == pytest.approx(0.5)
        assert np.isnan(scores.recombined_accuracy(matrix[:1, :1], native[:1, :1]))

    def test_retrained_head_reads_what_the_features_hold(self, space, dataset) -> None:
        assert retrained_head_accuracy(make(space, Oracle).eval(), dataset, dataset) == 1.0

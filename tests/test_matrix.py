"""Scores and the recombination matrix."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import timm_compat as tc
from timm_compat.evaluation import scores
from timm_compat.evaluation.baselines import retrained_head_accuracy


class Oracle(tc.CompatExtractor):
    """Features that are the first pixels of the image, so that accuracies are known by hand; counts its passes."""

    passes = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += len(images)
        return images.flatten(1)[:, : self.space.feature_dim]


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
def dataset() -> tc.ArrayDataset:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    images = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    images[torch.arange(8), 0, 0, labels] = 200
    return tc.ArrayDataset(images, labels, ("x", "y", "z"))


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

    def test_refuses_another_space_unless_asked(self, space, dataset) -> None:
        other = tc.CompatSpace(3, ["x", "y", "z"], ["rotation"])
        parts = {"a": make(space)}, {"b": tc.TaskHead(other, ["x", "y", "z"])}
        with pytest.raises(tc.SpaceMismatchError, match="methods"):
            tc.recombination_matrix(*parts, dataset)
        assert tc.recombination_matrix(*parts, dataset, cross_space=True).accuracy.shape == (1, 1)

    def test_refuses_nothing_to_measure(self, space, dataset) -> None:
        extractor, head = make(space), tc.TaskHead(space, ["p"])
        with pytest.raises(tc.DataError, match="a head knows"):
            tc.recombination_matrix({"a": extractor}, {"a": head}, dataset)
        with pytest.raises(tc.DataError):
            tc.recombination_matrix({"a": extractor}, {"a": head}, dataset.subset([]))
        with pytest.raises(tc.ConfigError, match="by name"):
            tc.recombination_matrix({}, {"a": head}, dataset)

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


class TestScores:
    def test_hand_worked_matrix(self) -> None:
        matrix, native = np.array([[0.9, 0.5], [np.nan, 0.7]]), np.eye(2, dtype=bool)
        assert scores.native_accuracy(matrix, native) == pytest.approx(0.8)
        assert scores.recombined_accuracy(matrix, native) == pytest.approx(0.5)
        assert np.isnan(scores.recombined_accuracy(matrix[:1, :1], native[:1, :1]))

    def test_retrained_head_reads_what_the_features_hold(self, space, dataset) -> None:
        assert retrained_head_accuracy(make(space, Oracle).eval(), dataset, dataset) == 1.0

"""Pseudo-labels, scores of unlabelled images and BatchNorm statistics, against slow or exact computations."""

import math

import pytest
import torch
from torch import nn

import timm_compat as tc
from timm_compat.methods.pseudo_labels import centre_labels, information, mean_entropy, most_confident
from timm_compat.models.batch_statistics import measure_statistics


def test_centres_agree_with_a_slow_computation() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(40, 5, generator=random, dtype=torch.float64)
    weights = torch.rand(40, 3, generator=random, dtype=torch.float64).softmax(dim=1)
    labels, margins = centre_labels(features, weights)
    unit = [row / row.norm() for row in features]
    for _ in range(2):
        centres = [sum(float(weights[i, k]) * unit[i] for i in range(40)) for k in range(3)]
        cosines = torch.stack([torch.stack([row @ (c / c.norm()) for c in centres]) for row in unit])
        weights = torch.eye(3, dtype=torch.float64)[cosines.argmax(dim=1)]
    assert torch.equal(labels, cosines.argmax(dim=1))
    largest = cosines.sort(dim=1, descending=True).values
    torch.testing.assert_close(margins, largest[:, 0] - largest[:, 1])


def test_a_class_that_nothing_looks_like_attracts_nothing() -> None:
    features = torch.eye(2).repeat(5, 1)
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]]).repeat(5, 1)
    labels, _ = centre_labels(features, probabilities)
    assert labels.tolist() == [0, 1] * 5


def test_the_most_confident_of_every_class() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    margins = torch.tensor([0.1, 0.4, 0.3, 0.2, 0.9, 0.8, 0.0])
    assert most_confident(labels, margins, 0.5).tolist() == [1, 2, 4, 6]
    assert most_confident(labels, margins, 1.0).tolist() == list(range(7))


def test_information_is_that_of_sure_and_varied_predictions() -> None:
    sure = torch.eye(4)
    assert information(sure) == pytest.approx(math.log(4), abs=1e-5)
    assert information(torch.full((4, 4), 0.25)) == pytest.approx(0, abs=1e-6)
    assert information(sure[:1].repeat(4, 1)) == pytest.approx(0, abs=1e-6)
    assert mean_entropy(torch.full((3, 4), 0.25)) == pytest.approx(math.log(4))


def test_statistics_are_the_mean_over_batches_and_nothing_else_changes() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    weights = network[0].weight.clone()
    batches = [torch.randn(8, 3), torch.randn(8, 3) + 5]
    measure_statistics(network, batches)
    with torch.no_grad():
        means = torch.stack([network[0](batch).mean(dim=0) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(network[2].running_mean, means)
    assert network[2].momentum == 0.1
    assert all(part.training for part in network)
    assert torch.equal(network[0].weight, weights)


def test_a_network_without_batchnorm_is_refused() -> None:
    with pytest.raises(tc.errors.ConfigError, match="BatchNorm"):
        measure_statistics(nn.Linear(2, 2), [torch.ones(2, 2)])

"""Each loss and closed form against an independent formulation."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from timm_compat.errors import DataError, ImageError
from timm_compat.methods.common_classes import common_class_loss, vocabulary_positions
from timm_compat.methods.ridge import LAMBDAS, Moments, fit_ridge, solve
from timm_compat.methods.rotation import rotate, rotation_loss


def moments_of(x: torch.Tensor, y: torch.Tensor, batch: int = 7) -> Moments:
    moments = Moments(x.shape[1], y.shape[1])
    for inputs, targets in zip(x.split(batch), y.split(batch), strict=True):
        moments.add(inputs, targets)
    return moments


class TestRotation:
    def test_turns_are_those_of_numpy(self) -> None:
        images = torch.rand(40, 3, 5, 5)
        turned, turns = rotate(images, 1.0, torch.Generator().manual_seed(0))
        assert set(turns.tolist()) == {0, 1, 2, 3}
        originals = {image.numpy().tobytes() for image in images}
        for image, turn in zip(turned, turns, strict=True):
            back = np.rot90(image.numpy(), -int(turn), axes=(1, 2))
            assert np.ascontiguousarray(back).tobytes() in originals

    @pytest.mark.parametrize(("fraction", "expected"), [(1.0, 16), (0.25, 4), (0.01, 1)])
    def test_takes_a_share_of_the_batch(self, fraction: float, expected: int) -> None:
        turned, turns = rotate(torch.rand(16, 1, 4, 4), fraction, torch.Generator().manual_seed(0))
        assert len(turned) == len(turns) == expected

    def test_leaves_the_batch_alone(self) -> None:
        images = torch.rand(8, 1, 4, 4)
        before = images.clone()
        rotate(images, 1.0, torch.Generator().manual_seed(0))
        assert torch.equal(images, before)

    def test_refuses_images_that_are_not_square(self) -> None:
        with pytest.raises(ImageError, match="square"):
            rotate(torch.rand(2, 1, 4, 5), 1.0, torch.Generator())

    def test_loss_is_the_mean_negative_log_probability(self) -> None:
        logits, turns = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
        slow = 0.0
        for row, turn in zip(logits.tolist(), turns.tolist(), strict=True):
            slow += math.log(sum(math.exp(value) for value in row)) - row[turn]
        assert rotation_loss(logits, turns).item() == pytest.approx(slow / 6, rel=1e-5)


class TestCommonClasses:
    def test_positions_go_by_name(self) -> None:
        assert vocabulary_positions(["cat", "dog", "eel"], ["dog", "cat"]).tolist() == [1, 0, -1]

    def test_loss_counts_samples_of_common_classes_only(self) -> None:
        logits, positions = torch.randn(5, 3), torch.tensor([2, -1, 0, -1, 1])
        slow = []
        for row, position in zip(logits.tolist(), positions.tolist(), strict=True):
            if position >= 0:
                slow.append(math.log(sum(math.exp(value) for value in row)) - row[position])
        assert common_class_loss(logits, positions).item() == pytest.approx(sum(slow) / 3, rel=1e-5)

    def test_batch_without_a_common_class_gives_zero_and_zero_gradient(self) -> None:
        logits = torch.randn(4, 3, requires_grad=True)
        loss = common_class_loss(logits, torch.full((4,), -1))
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(logits.grad, torch.zeros(4, 3))


class TestRidge:
    @pytest.fixture
    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        random = torch.Generator().manual_seed(0)
        x = torch.randn(200, 12, generator=random) * torch.logspace(-2, 2, 12) + 3
        y = x @ torch.randn(12, 4, generator=random) * 0.1 + torch.randn(200, 4, generator=random) + 5
        return x, y

    @pytest.mark.parametrize("penalty", [1e-4, 0.1, 10.0])
    def test_equals_scikit_learn_on_standardised_features(self, data, penalty: float) -> None:
        x, y = data
        weight, bias = solve(moments_of(x, y), penalty)
        mean, scale = x.double().mean(0), x.double().std(0, correction=0)
        ridge = Ridge(alpha=penalty * len(x)).fit(((x - mean) / scale).numpy(), y.double().numpy())
        expected = ridge.predict(((x - mean) / scale).numpy())
        np.testing.assert_allclose((x.double() @ weight.T + bias).numpy(), expected, rtol=1e-6, atol=1e-6)

    def test_chooses_the_penalty_of_a_direct_search_and_reports_its_r2(self, data) -> None:
        x, y = data
        fitted, held_out = slice(0, 40), slice(40, 200)
        result = fit_ridge(moments_of(x[fitted], y[fitted]), moments_of(x[held_out], y[held_out]))
        errors = {}
        for penalty in LAMBDAS:
            weight, bias = solve(moments_of(x[fitted], y[fitted]), penalty)
            predicted = x[held_out].double() @ weight.T + bias
            errors[penalty] = ((predicted - y[held_out]) ** 2).sum().item(), predicted
        best = min(errors, key=lambda penalty: errors[penalty][0])
        assert result.penalty == best
        expected = r2_score(y[held_out].numpy(), errors[best][1].numpy(), multioutput="variance_weighted")
        assert result.r2 == pytest.approx(expected, abs=1e-6)
        assert (result.num_fitted, result.num_held_out) == (40, 160)

    def test_constant_and_repeated_features_do_no_harm(self, data) -> None:
        x, y = data
        wide = torch.cat([x, torch.full((200, 1), 7.0), x[:, :1]], dim=1)
        weight, _ = solve(moments_of(wide, y), 1e-5)
        assert torch.isfinite(weight).all()
        assert torch.equal(weight[:, 12], torch.zeros(4, dtype=torch.float64))

    def test_needs_images_on_both_sides(self, data) -> None:
        x, y = data
        with pytest.raises(DataError, match="more unlabelled images"):
            fit_ridge(moments_of(x, y), moments_of(x[:1], y[:1]))

"""The closed form of a join against slow, independent formulations."""

import numpy as np
import pytest
import scipy.linalg
import torch

from timm_compat.joining.closed_form import Centre, ClassRows, ClosedForm, partial_isometry, strengths
from timm_compat.methods.ridge import Moments

DOUBLE = torch.float64


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def moments(x: torch.Tensor, y: torch.Tensor) -> Moments:
    sums = Moments(x.shape[1], y.shape[1])
    sums.add(x, y)
    return sums


class TestPartialIsometry:
    @pytest.mark.parametrize("shape", [(5, 5), (7, 4), (4, 7)])
    def test_is_the_polar_factor(self, shape) -> None:
        matrix = drawn(*shape)
        expected, _ = scipy.linalg.polar(matrix.numpy(), side="right" if shape[0] >= shape[1] else "left")
        np.testing.assert_allclose(partial_isometry(matrix).numpy(), expected, atol=1e-8)

    def test_directions_of_which_nothing_is_known_stay_zero(self) -> None:
        matrix = drawn(6, 2) @ drawn(2, 5, seed=1)
        turned = partial_isometry(matrix)
        values = torch.linalg.svdvals(turned)
        torch.testing.assert_close(values, torch.tensor([1.0, 1, 0, 0, 0], dtype=DOUBLE), rtol=0, atol=1e-7)


class TestClosedForm:
    @pytest.mark.parametrize("with_centre", [False, True])
    @pytest.mark.parametrize("with_classes", [False, True])
    @pytest.mark.parametrize("count", [12, 400])
    def test_no_step_lowers_the_objective(self, count: int, with_classes: bool, with_centre: bool) -> None:
        f, d, k = 6, 5, 4
        x, y = drawn(count, f) * torch.logspace(-1, 1, f, dtype=DOUBLE) + 2, drawn(count, d, seed=1) - 3
        rows = ClassRows(drawn(k, f, seed=2), drawn(k, d, seed=3)) if with_classes else None
        centre = Centre(drawn(f, seed=4), drawn(d, seed=5)) if with_centre else None
        weight, bias = ClosedForm(moments(x, y), rows, centre).map()
        if centre is not None:  # it counts as a hundred more images
            x, y = torch.cat([x, centre.new.expand(100, f)]), torch.cat([y, centre.space.expand(100, d)])
        torch.testing.assert_close(bias, y.mean(0) - weight @ x.mean(0))

        # The objective, written down once more from the images themselves.
        def scale(z: torch.Tensor) -> torch.Tensor:
            variance = z.var(0, correction=0)
            return ((count * (variance + 0.1 * variance.mean()) + 100 * variance.mean()) / (count + 100)).sqrt()

        sx, sy = scale(x), scale(y)
        xs, ys = (x - x.mean(0)) / sx, (y - y.mean(0)) / sy
        unit = xs.square().sum(1).mean() / f
        cross = xs.T @ ys
        given = strengths(count, f, has_classes=with_classes)
        belief = cross.T / cross.norm()
        u = v = torch.zeros(1, 1, dtype=DOUBLE)
        if rows is not None:
            u, v = rows.new * sx, rows.space * sy
            v_unit = v.square().sum() / d
            belief = belief + (v.T @ u) / (v.T @ u).norm()
        q = partial_isometry(belief) * (ys.square().sum() / xs.square().sum()).sqrt()

        def objective(w: torch.Tensor) -> torch.Tensor:
            value = (xs @ w.T - ys).square().sum() / len(xs) / unit + given.rotation * (w - q).square().sum()
            if rows is not None:
                value = value + given.classes * (v @ w - u).square().sum() / v_unit
            return value

        found = (weight / sy[:, None] * sx).requires_grad_()
        objective(found).backward()
        assert found.grad.abs().max() < 1e-8 * (1 + objective(found).item())

    @pytest.mark.parametrize("count", [4, 9])
    def test_without_images_no_step_lowers_the_objective(self, count: int) -> None:
        f, d = 7, 6
        u, v = drawn(count, f), drawn(count, d, seed=1)
        weight, bias = ClosedForm(None, ClassRows(u, v)).map()
        given, unit = strengths(0, f, has_classes=True), v.square().sum() / d
        left, values, right = np.linalg.svd((v.T @ u).numpy(), full_matrices=False)
        known = min(count, d)
        assert (values[known:] < 1e-9).all()
        q = torch.from_numpy(left[:, :known] @ right[:known]) * u.norm() / v.norm()
        found = (weight / 1.3).requires_grad_()  # what is made louder, as it was before
        loss = given.classes * (v @ found - u).square().sum() / unit + given.rotation * (found - q).square().sum()
        loss.backward()
        assert found.grad.abs().max() < 1e-8 * (1 + loss.item())
        assert bias.count_nonzero() == 0

    def test_images_of_one_network_in_both_places_give_the_identity(self) -> None:
        x = drawn(500, 8)
        weight, bias = ClosedForm(moments(x, x), None).map()
        torch.testing.assert_close(weight, torch.eye(8, dtype=DOUBLE), rtol=0, atol=0.02)
        torch.testing.assert_close(bias, torch.zeros(8, dtype=DOUBLE), rtol=0, atol=0.02)

    def test_classes_alone_give_the_rotation_between_two_networks(self) -> None:
        turn = torch.linalg.qr(drawn(8, 8)).Q
        space = drawn(40, 8, seed=1)
        space = space - space.mean(0)
        weight, bias = ClosedForm(None, ClassRows(space @ turn, space)).map()
        torch.testing.assert_close(weight / weight.norm(), turn / turn.norm(), rtol=0, atol=1e-6)
        assert not bias.any()

"""Each loss and closed form against an independent formulation."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_metric_learning.losses import NTXentLoss
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import timm_compat as tc
from timm_compat.errors import DataError, ImageError
from timm_compat.evaluation.scores import linear_cka
from timm_compat.methods.alignment import contrastive_losses, l2_losses
from timm_compat.methods.common_classes import common_class_losses, vocabulary_positions
from timm_compat.methods.initial_weights import same_start, start_name
from timm_compat.methods.registry import self_supervised_tasks
from timm_compat.methods.ridge import LAMBDAS, Moments, fit_ridge, solve
from timm_compat.methods.self_supervised import (
    ROTATION,
    draw_answers,
    enlarge_quadrants,
    every_view,
    rotate,
    turn_over,
    view_numbers,
)
from timm_compat.methods.simplex import simplex_vertices
from timm_compat.training.old_head import extend_classifier, focal_distillation_losses, influence_losses

TASKS = {task.name: task for task in self_supervised_tasks()}


def moments_of(x: torch.Tensor, y: torch.Tensor, batch: int = 7) -> Moments:
    moments = Moments(x.shape[1], y.shape[1])
    for inputs, targets in zip(x.split(batch), y.split(batch), strict=True):
        moments.add(inputs, targets)
    return moments


def slow_cross_entropy(logits: torch.Tensor, target: int) -> float:
    row = logits.tolist()
    return math.log(sum(math.exp(value) for value in row)) - row[target]


class TestRotation:
    def test_turns_are_those_of_numpy(self) -> None:
        images, turns = torch.rand(8, 3, 5, 5), torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
        for image, turned, turn in zip(images, rotate(images, turns), turns, strict=True):
            np.testing.assert_array_equal(turned.numpy(), np.rot90(image.numpy(), int(turn), axes=(1, 2)))

    @pytest.mark.parametrize(("fraction", "expected"), [(1.0, 16), (0.25, 4), (0.01, 1)])
    def test_draws_a_share_of_the_batch(self, fraction: float, expected: int) -> None:
        places, turns = draw_answers(16, fraction, 4, torch.Generator().manual_seed(0))
        assert len(places) == len(turns) == len(set(places.tolist())) == expected
        assert set(turns.tolist()) <= {0, 1, 2, 3}

    def test_leaves_the_batch_alone(self) -> None:
        images = torch.rand(8, 1, 4, 4)
        before = images.clone()
        rotate(images, torch.full((8,), 3))
        assert torch.equal(images, before)

    def test_refuses_images_that_are_not_square(self) -> None:
        with pytest.raises(ImageError, match="square"):
            rotate(torch.rand(2, 1, 4, 5), torch.tensor([0, 1]))

    def test_loss_is_the_negative_log_probability(self) -> None:
        logits, turns = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
        slow = [slow_cross_entropy(row, turn) for row, turn in zip(logits, turns.tolist(), strict=True)]
        seen = tc.Seen(torch.zeros(6, 2), 6, asked={"rotation": tc.Asked(logits, turns, 6)})
        each, count = ROTATION.losses(torch.nn.Identity(), seen)
        assert (each.tolist(), count) == (pytest.approx(slow, rel=1e-5), 6)


class TestSelfSupervisedTasks:
    def test_a_quadrant_fills_the_image(self) -> None:
        corners = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
        images = corners.expand(4, 3, 8, 8)
        for number, image in enumerate(enlarge_quadrants(images, torch.arange(4)), 1):
            assert torch.equal(image, torch.full((3, 8, 8), float(number)))

    @pytest.mark.parametrize("shape", [(6, 6), (5, 7), (1, 2)])
    def test_a_quadrant_is_enlarged_as_pillow_does(self, shape: tuple[int, int]) -> None:
        rows, columns = ((side + 1) // 2 for side in shape)
        image = torch.rand(shape)
        places = [image[:rows, :columns], image[:rows, -columns:], image[-rows:, :columns], image[-rows:, -columns:]]
        enlarged = enlarge_quadrants(image.expand(4, 1, *shape), torch.arange(4))
        for crop, found in zip(places, enlarged, strict=True):
            whole = Image.fromarray(crop.contiguous().numpy()).resize(shape[::-1], Image.Resampling.BILINEAR)
            np.testing.assert_allclose(found[0].numpy(), np.asarray(whole), atol=1e-5)

    def test_turned_over_is_numpys_flip_of_rows(self) -> None:
        images = torch.rand(4, 3, 5, 6)
        changed = turn_over(images, torch.tensor([0, 1, 1, 0])).numpy()
        for number, flipped in enumerate((False, True, True, False)):
            image = images[number].numpy()
            np.testing.assert_array_equal(changed[number], np.flip(image, 1) if flipped else image)

    @pytest.mark.parametrize("name", TASKS)
    def test_a_change_leaves_the_batch_alone_and_keeps_its_form(self, name: str) -> None:
        task, images = TASKS[name], torch.rand(8, 1, 6, 6)
        before = images.clone()
        changed = task.change(images, torch.arange(8) % task.num_classes)
        assert changed.shape == images.shape
        assert torch.equal(images, before)
        assert task.change(images[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 6, 6)
        assert torch.equal(changed[0], images[0]) == task.starts_upright

    def test_drawn_answers_are_the_tasks(self) -> None:
        for task in TASKS.values():
            _, answers = draw_answers(64, 1.0, task.num_classes, torch.Generator().manual_seed(0))
            assert answers.unique().tolist() == list(range(task.num_classes))

    @pytest.mark.parametrize("tasks", [(), ("rotation",), ("location",), ("rotation", "location", "flip")])
    def test_numbers_of_the_views(self, tasks: tuple[str, ...]) -> None:
        images = torch.rand(2, 1, 6, 6)
        asked = self_supervised_tasks(tasks)
        views = every_view(images, asked)
        assert torch.equal(views[0], images)
        for name, numbers in view_numbers(asked).items():
            for answer, number in enumerate(numbers.tolist()):
                assert torch.equal(views[number], TASKS[name].change(images, torch.full((2,), answer)))

    def test_shared_ones_stand_in_one_order(self) -> None:
        assert [task.name for task in self_supervised_tasks(["simplex", "flip", "rotation"])] == ["rotation", "flip"]


class TestCommonClasses:
    def test_positions_go_by_name(self) -> None:
        assert vocabulary_positions(["cat", "dog", "eel"], ["dog", "cat"]).tolist() == [1, 0, -1]

    def test_loss_counts_samples_of_common_classes_only(self) -> None:
        logits, positions = torch.randn(5, 3), torch.tensor([2, -1, 0, -1, 1])
        slow = [
            0.0 if position < 0 else slow_cross_entropy(row, position)
            for row, position in zip(logits, positions.tolist(), strict=True)
        ]
        assert common_class_losses(logits, positions).tolist() == pytest.approx(slow, rel=1e-5)

    def test_sample_without_a_common_class_gives_zero_gradient(self) -> None:
        logits = torch.randn(4, 3, requires_grad=True)
        loss = common_class_losses(logits, torch.full((4,), -1)).sum()
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(logits.grad, torch.zeros(4, 3))


class TestSimplex:
    def test_vertices_are_unit_and_equiangular(self) -> None:
        cosines = (vertices := simplex_vertices(7)) @ vertices.T
        expected = torch.full((8, 8), -1 / 7).fill_diagonal_(1)
        torch.testing.assert_close(cosines, expected, rtol=0, atol=1e-6)


class TestInitialWeights:
    def test_same_start_whatever_was_drawn_before(self) -> None:
        first = same_start(3, lambda: torch.nn.Linear(4, 4).weight)
        torch.rand(5)
        assert torch.equal(first, same_start(3, lambda: torch.nn.Linear(4, 4).weight))
        assert not torch.equal(first, same_start(4, lambda: torch.nn.Linear(4, 4).weight))

    def test_name_holds_what_decides_shapes(self) -> None:
        assert start_name("resnet18", None, {"in_chans": 1, "a": 2}) == "resnet18 a=2 in_chans=1"
        assert start_name("resnet18", 2, {}) == "resnet18 out_index=2"


class TestAlignment:
    def test_l2_is_the_mean_squared_difference(self) -> None:
        features, targets = torch.randn(3, 5), torch.randn(3, 5)
        slow = [
            sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 5
            for x, y in zip(features.tolist(), targets.tolist(), strict=True)
        ]
        assert l2_losses(features, targets).tolist() == pytest.approx(slow, rel=1e-5)
        assert l2_losses(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)).shape == (2,)

    def test_contrastive_is_that_of_pytorch_metric_learning(self) -> None:
        features, targets, labels = torch.randn(6, 8), torch.randn(6, 8), torch.arange(6)
        expected = NTXentLoss(temperature=0.2)(features, labels, ref_emb=targets, ref_labels=labels.clone())
        assert contrastive_losses(features, targets, 0.2).mean().item() == pytest.approx(expected.item(), rel=1e-5)

    def test_contrastive_leaves_out_images_of_the_same_class(self) -> None:
        features, targets, labels = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 0, 2, 1])
        slow = []
        for i in range(5):
            kept = [j for j in range(5) if j == i or labels[j] != labels[i]]
            cosines = torch.stack([torch.cosine_similarity(features[i], targets[j], dim=0) / 0.1 for j in kept])
            slow.append(slow_cross_entropy(cosines, kept.index(i)))
        assert contrastive_losses(features, targets, 0.1, labels).tolist() == pytest.approx(slow, rel=1e-4, abs=1e-6)


class TestInfluence:
    def test_unknown_classes_do_not_count(self) -> None:
        logits = torch.randn(3, 4)
        losses = influence_losses(logits, torch.tensor([1, -1, 3])).tolist()
        assert losses == pytest.approx([slow_cross_entropy(logits[0], 1), 0.0, slow_cross_entropy(logits[2], 3)])

    def test_new_classes_are_recognised_by_their_old_features(self) -> None:
        random = torch.Generator().manual_seed(0)
        weight, bias = torch.randn(3, 16, generator=random), torch.randn(3, generator=random)
        means = torch.randn(4, 16, generator=random) * 3
        new_weight, new_bias = extend_classifier(weight, bias, means)
        assert torch.equal(new_weight[:3], weight)
        assert torch.equal(new_bias[:3], bias)
        assert new_weight[3:].norm(dim=1).tolist() == pytest.approx([weight.norm(dim=1).mean().item()] * 4)
        logits = means @ new_weight[3:].T + new_bias[3:]
        assert logits.argmax(dim=1).tolist() == [0, 1, 2, 3]


class TestFocalDistillation:
    def test_is_the_weighted_divergence(self) -> None:
        new, old, correct = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([True, False, True])
        slow = []
        for x, y, right in zip(new, old, correct.tolist(), strict=True):
            p, q = (y / 2).softmax(0).tolist(), (x / 2).softmax(0).tolist()
            divergence = 4 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
            slow.append((0.5 + 3.0 * right) * divergence)
        losses = focal_distillation_losses(new, old, correct, alpha=0.5, beta=3.0, t=2.0)
        assert losses.tolist() == pytest.approx(slow, rel=1e-4)

    def test_equal_outputs_cost_nothing(self) -> None:
        logits = torch.randn(5, 3)
        losses = focal_distillation_losses(logits, logits, torch.ones(5, dtype=torch.bool))
        assert losses.abs().max().item() < 1e-6


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
        weight, bias = solve(moments_of(x, y), best)
        torch.testing.assert_close(result.weight, weight)
        torch.testing.assert_close(result.bias, bias)

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


class TestLinearCKA:
    def test_equals_the_gram_matrix_form(self) -> None:
        random = torch.Generator().manual_seed(0)
        x = torch.randn(30, 5, generator=random) + 2
        y = x[:, :3] @ torch.randn(3, 7, generator=random) + torch.randn(30, 7, generator=random)
        centring = torch.eye(30, dtype=torch.float64) - 1 / 30
        k, g = (centring @ z.double() @ z.double().T @ centring for z in (x, y))
        expected = torch.trace(k @ g) / (torch.trace(k @ k) * torch.trace(g @ g)).sqrt()
        assert linear_cka(x, y) == pytest.approx(expected.item(), abs=1e-12)

    def test_ignores_rotation_scale_and_mean_only(self) -> None:
        random = torch.Generator().manual_seed(0)
        x = torch.randn(40, 4, generator=random)
        rotation = torch.linalg.qr(torch.randn(4, 4, generator=random)).Q
        assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-6)
        assert linear_cka(x, x * torch.tensor([10.0, 1, 1, 1])) < 0.9
        assert math.isnan(linear_cka(x, torch.ones(40, 2)))

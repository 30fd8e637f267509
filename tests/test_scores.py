"""Scores on arrays: every one against a case worked by hand."""

import numpy as np
import pytest

import timm_compat as tc
from timm_compat.evaluation import intervals, predictions, scores

NAN = float("nan")
# Three models, oldest first. Own accuracies 0.6, 0.7, 0.8.
MATRIX = np.array([[0.6, 0.65, 0.5], [0.6, 0.7, 0.9], [0.7, 0.6, 0.8]])
NATIVE = np.eye(3, dtype=bool)


class TestMatrixScores:
    def test_compatibility_is_what_is_left_over_chance(self) -> None:
        left = scores.compatibility(MATRIX, NATIVE, np.array([0.1, 0.2, 0.5]))
        # (0.65 - 0.2) / (0.7 - 0.2), (0.5 - 0.5) / (0.8 - 0.5), (0.9 - 0.5) / (0.8 - 0.5)
        assert left[0] == pytest.approx([1, 0.9, 0])
        assert left[1, 2] == pytest.approx(4 / 3)
        assert np.diag(left) == pytest.approx([1, 1, 1])

    def test_heads_without_a_native_cell_or_at_chance_have_none(self) -> None:
        native = np.array([[True, False], [False, False]])
        left = scores.compatibility(np.array([[0.5, 0.4], [0.3, 0.2]]), native, np.array([0.5, 0.1]))
        assert np.isnan(left).all()

    def test_gap_in_points(self) -> None:
        gaps = scores.gap_points(MATRIX, NATIVE)
        assert gaps[0] == pytest.approx([0, 5, 30])
        assert gaps[1, 2] == pytest.approx(-10)

    def test_stitching_penalty(self) -> None:
        assert scores.stitching_penalty(np.array([0.6, 0.75]), np.array(0.7)) == pytest.approx([0.1, -0.05])

    def test_average_compatibility_and_its_tie_rule(self) -> None:
        # M[1,0] = 0.6 ties with M[0,0]; M[2,0] = 0.7 > 0.6; M[2,1] = 0.6 < 0.7
        assert scores.average_compatibility(MATRIX) == pytest.approx(1 / 3)
        assert scores.average_compatibility(MATRIX, ties=True) == pytest.approx(2 / 3)

    def test_unmeasured_pairs_do_not_count(self) -> None:
        matrix = MATRIX.copy()
        matrix[1, 0] = NAN
        assert scores.average_compatibility(matrix) == pytest.approx(1 / 2)
        assert scores.average_accuracy(matrix) == pytest.approx((0.6 + 0.7 + 0.7 + 0.6 + 0.8) / 5)
        assert np.isnan(scores.average_compatibility(np.array([[0.5]])))

    def test_average_accuracy_backward_and_forward(self) -> None:
        assert scores.average_accuracy(MATRIX) == pytest.approx((0.6 + 0.6 + 0.7 + 0.7 + 0.6 + 0.8) / 6)
        # newer on older heads: 0, +0.1, -0.1
        assert scores.backward_compatibility(MATRIX) == pytest.approx(0, abs=1e-12)
        # older under newer heads: 0.65 - 0.6, 0.5 - 0.6, 0.9 - 0.7
        assert scores.forward_compatibility(MATRIX) == pytest.approx(0.05)

    def test_published_figures_of_bct(self) -> None:
        # ImageNet top-1 of the public re-implementation: old 39.5, cross 42.2, new 55.6 against 66.3 unconstrained.
        assert scores.update_gain(0.422, 0.395, 0.663) == pytest.approx(0.10, abs=0.005)
        assert scores.compatibility_cost(0.663, 0.556) == pytest.approx(0.107)
        assert np.isnan(scores.update_gain(0.5, 0.5, 0.5))

    @pytest.mark.parametrize("score", [scores.average_compatibility, scores.average_accuracy])
    def test_sequences_are_square(self, score) -> None:
        with pytest.raises(tc.errors.DataError, match=r"one row and one column per model, got shape \(2, 3\)"):
            score(MATRIX[:2])


class TestPredictions:
    def test_negative_flips(self) -> None:
        expected = np.zeros(10, dtype=int)
        old = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])  # 8 right
        new = np.array([0, 0, 0, 0, 0, 0, 2, 2, 0, 2])  # 7 right, two of the eight flipped
        assert predictions.negative_flip_rate(old, new, expected) == pytest.approx(0.2)
        assert predictions.relative_negative_flip_rate(old, new, expected) == pytest.approx(0.2 / (0.8 * 0.3))
        assert predictions.negative_flip_rate(old, old, expected) == 0
        assert np.isnan(predictions.relative_negative_flip_rate(old, expected, expected))

    def test_calibration_error(self) -> None:
        # bin (0.8, 0.9]: mean confidence 0.85, accuracy 0.5; bin (0.1, 0.2]: 0.2 and 0
        confidence, right = [0.81, 0.89, 0.2, 0.2], [True, False, False, False]
        assert predictions.calibration_error(confidence, right, bins=10) == pytest.approx((2 * 0.35 + 2 * 0.2) / 4)
        assert predictions.calibration_error([1.0, 0.0], [True, False]) == 0
        assert np.isnan(predictions.calibration_error([], []))

    def test_calibration_error_is_that_of_torchmetrics(self) -> None:
        import torch
        from torchmetrics.functional.classification import binary_calibration_error

        draw = torch.Generator().manual_seed(0)
        confidence, right = torch.rand(500, generator=draw), torch.rand(500, generator=draw) < 0.6
        theirs = binary_calibration_error(confidence, right.int(), n_bins=15, norm="l1")
        assert predictions.calibration_error(confidence, right) == pytest.approx(float(theirs), abs=1e-6)

    def test_refuses_what_does_not_fit(self) -> None:
        with pytest.raises(tc.errors.DataError, match="one length"):
            predictions.negative_flip_rate([0, 1], [0], [0, 1])
        with pytest.raises(tc.errors.DataError, match="one length"):
            predictions.calibration_error([0.5], [True, False])
        with pytest.raises(tc.errors.DataError, match="from 0 to 1"):
            predictions.calibration_error([1.5], [True])


class TestIntervals:
    def test_wilson_by_hand(self) -> None:
        # n = 10, p = 0.5, z = 1.96: published (0.2366, 0.7634)
        assert intervals.wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
        assert intervals.wilson_interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
        assert intervals.wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
        assert np.isnan(intervals.wilson_interval(NAN, 0)).all()

    def test_wilson_holds_the_truth_as_often_as_it_says(self) -> None:
        found = np.random.default_rng(0).binomial(200, 0.8, size=2000) / 200
        held = [low <= 0.8 <= high for low, high in (intervals.wilson_interval(share, 200) for share in found)]
        assert np.mean(held) == pytest.approx(0.95, abs=0.02)

    def test_bootstrap_of_a_mean(self) -> None:
        values = np.random.default_rng(1).normal(0.5, 0.1, size=400)
        low, high = intervals.bootstrap_interval([*values, NAN])
        assert (low, high) == pytest.approx((values.mean() - 0.0098, values.mean() + 0.0098), abs=0.002)
        assert intervals.bootstrap_interval([0.3, 0.3]) == pytest.approx((0.3, 0.3))
        assert np.isnan(intervals.bootstrap_interval([NAN])).all()

    def test_confidence_is_a_share(self) -> None:
        with pytest.raises(tc.errors.ConfigError, match="between 0 and 1, got 95"):
            intervals.wilson_interval(0.5, 10, 95)
        with pytest.raises(tc.errors.ConfigError, match="confidence"):
            intervals.bootstrap_interval([0.5], 1.0)

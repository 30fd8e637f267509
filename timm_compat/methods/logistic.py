"""Multinomial logistic regression on frozen features, its penalty chosen by stratified cross-validation.

Minimised is the mean cross-entropy plus ``penalty / 2`` times the squared norm of the weights, biases left free: with
n samples scikit-learn's C is 1 / (n penalty). The solver is L-BFGS with warm starts from strong penalties to weak ones,
in the features' principal axes and scaled there by the curvature that each axis has at the start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTIES = tuple(10.0**-step for step in range(-1, 6))  # from 10 down to 1e-5, then half a decade around the best
FOLDS = 5
MAX_STEPS = 100
# Steps end where they change the loss by less. While choosing, a rough answer ranks the penalties as well.
TOLERANCE, ROUGH_TOLERANCE = 1e-7, 1e-5
PATIENCE = 2  # weaker penalties in a row without a gain end the choice
ROWS = 8192  # at a time, so that logits take little memory
LEAST_SPREAD = 1e-6  # of a feature, in units of the largest


@dataclass(frozen=True)
class LogisticFit:
    """Logits are weight @ features + bias.

    Attributes:
        weight: (K, F), float32.
        bias: (K,), float32.
        penalty: of the squared weights of standardised features.
        correct: (N,), bool, whether a fit that had not seen the sample told its class; None without cross-validation.
        held_out: (N,), bool, which samples were ever held out: those of classes with two samples or more.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    correct: Tensor | None
    held_out: Tensor

    def classes(self, features: Tensor) -> Tensor:
        """Classes (M,), int64, of features (M, F)."""
        return F.linear(features.float(), self.weight, self.bias).argmax(dim=1)


@torch.no_grad()
def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    penalty: float | None = None,
    standardize: bool = True,
    generator: torch.Generator | None = None,
    overwrite: bool = False,
) -> LogisticFit:
    """Fit a linear classifier to features.

    Args:
        features: (N, F), float32.
        labels: (N,), int64, classes from 0 to ``num_classes - 1``.
        num_classes: K.
        penalty: chosen if None, by the accuracy in cross-validation, the stronger of equals. Where every class has one
            sample only there is nothing to choose by: it is the middle one then.
        standardize: whether every feature is brought to variance 1 first; the result takes raw features.
        generator: draws the folds.
        overwrite: whether the features' memory may be used; otherwise a copy is made of them.
    """
    rows = features if overwrite else features.float().clone()
    mean, scale = rows.mean(dim=0), torch.ones_like(rows[0])
    if standardize:
        spread = rows.std(dim=0, unbiased=False)
        scale = 1 / spread.clamp(min=max(LEAST_SPREAD * float(spread.max()), torch.finfo(torch.float32).tiny))
    axes, curvature = _to_principal_axes(rows, mean, scale)
    problem = _Problem(rows, labels, num_classes, curvature)
    folds = stratified_folds(labels, FOLDS, generator)
    correct, chosen = None, penalty
    if chosen is None:
        chosen, correct = _choose(problem, folds)
    weight, bias = problem.solved(None, [*(one for one in PENALTIES if one > chosen * 10), chosen], TOLERANCE)
    weight = (axes @ weight).T * scale
    return LogisticFit(weight, bias - weight @ mean, chosen, correct, folds >= 0)


def stratified_folds(labels: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Folds (N,), int64, from 0 to ``count - 1``, every class spread over them; -1 for the only sample of a class.

    A class of fewer samples than folds is held out one at a time; where it starts is drawn, so that folds are alike.
    """
    folds = torch.full_like(labels, -1)
    start = 0
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) > 1:
            order = torch.randperm(len(members), generator=generator).to(members.device)
            folds[members[order]] = (torch.arange(len(members), device=members.device) + start) % count
            start += len(members)
    return folds


def _to_principal_axes(rows: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    # In place: features are all the memory that is taken. Ridge penalties do not see a rotation.
    width = rows.shape[1]
    covariance = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    for part in rows.split(ROWS):
        part.sub_(mean).mul_(scale)
        covariance += (part.T @ part).double()
    values, axes = torch.linalg.eigh((covariance / len(rows)).float())
    for part in rows.split(ROWS):
        part.copy_(part @ axes)
    return axes, values.clamp(min=0)


Solutions = dict[int, tuple[Tensor, Tensor]]  # weights and biases by fold


class _Problem:
    """Samples in their principal axes; weights (F, K) and biases (K,) that fit those not held out."""

    def __init__(self, rows: Tensor, labels: Tensor, num_classes: int, curvature: Tensor) -> None:
        self.rows, self.labels, self.curvature = rows, labels, curvature
        self.num_classes = num_classes

    def solved(
        self,
        kept: Tensor | None,
        penalties: Sequence[float],
        tolerance: float,
        start: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The optimum of the last penalty, by way of the others.

        Args:
            kept: (N,), bool, samples to fit; all if None.
            penalties: from strong to weak.
            tolerance: change of the loss at which to end.
            start: weights and biases; zeros if None.
        """
        zeros = torch.zeros(len(self.curvature) + 1, self.num_classes, device=self.rows.device)
        weight, bias = start or (zeros[1:], zeros[0])
        share = torch.ones(len(self.rows), device=zeros.device) if kept is None else kept.float()
        share = share / share.sum()
        for penalty in penalties:
            weight, bias = self._optimum(weight, bias, share, penalty, tolerance)
        return weight, bias

    def _optimum(
        self, weight: Tensor, bias: Tensor, share: Tensor, penalty: float, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        scale = (self.curvature / max(self.num_classes, 4) + penalty).rsqrt()[:, None]
        freedom = max(self.num_classes, 4) ** 0.5
        point = torch.cat([weight / scale, bias[None] / freedom]).requires_grad_()
        solver = torch.optim.LBFGS(
            [point], max_iter=MAX_STEPS, tolerance_grad=tolerance, tolerance_change=tolerance, history_size=20,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> float:
            here = point.detach()
            own, free = here[:-1] * scale, here[-1] * freedom
            loss, slope, shift = self._loss(own, free, share)
            point.grad = torch.cat([(slope + penalty * own) * scale, shift[None] * freedom])
            return loss + penalty / 2 * float(own.square().sum())

        solver.step(closure)
        found = point.detach()
        return found[:-1] * scale, found[-1] * freedom

    def _loss(self, weight: Tensor, bias: Tensor, share: Tensor) -> tuple[float, Tensor, Tensor]:
        loss, slope, shift = 0.0, torch.zeros_like(weight), torch.zeros_like(bias)
        for rows, labels, part in zip(self.rows.split(ROWS), self.labels.split(ROWS), share.split(ROWS), strict=True):
            logits = (rows @ weight).add_(bias).log_softmax(dim=1)
            loss -= float(logits.gather(1, labels[:, None])[:, 0] @ part)
            error = logits.exp_()
            error.scatter_add_(1, labels[:, None], torch.full_like(part, -1)[:, None])
            error *= part[:, None]
            slope.addmm_(rows.T, error)
            shift += error.sum(dim=0)
        return loss, slope, shift

    def told(self, weight: Tensor, bias: Tensor, members: Tensor) -> Tensor:
        """Which members (m,) get their class."""
        predicted = (self.rows[members] @ weight + bias).argmax(dim=1)
        return predicted == self.labels[members]


def _choose(problem: _Problem, folds: Tensor) -> tuple[float, Tensor | None]:
    numbers = [number for number in range(FOLDS) if bool((folds == number).any())]
    if not numbers:
        return PENALTIES[len(PENALTIES) // 2], None
    members = {number: (folds == number).nonzero().flatten() for number in numbers}

    def measured(penalty: float, starts: Solutions) -> tuple[Tensor, Solutions]:
        correct, found = torch.zeros_like(folds, dtype=torch.bool), {}
        for number in numbers:
            found[number] = problem.solved(folds != number, [penalty], ROUGH_TOLERANCE, starts.get(number))
            correct[members[number]] = problem.told(*found[number], members[number])
        return correct, found

    trials: dict[float, tuple[Tensor, Solutions]] = {}
    starts: Solutions = {}
    for penalty in PENALTIES:
        trials[penalty] = measured(penalty, starts)
        starts = trials[penalty][1]
        best = _best(trials)
        if best > penalty * 10**PATIENCE * 0.9:
            break
    for penalty in (best * 10**0.5, best / 10**0.5):
        trials[penalty] = measured(penalty, trials[best][1])
    best = _best(trials)
    return best, trials[best][0]


def _best(trials: Mapping[float, tuple[Tensor, Solutions]]) -> float:
    return max(trials, key=lambda penalty: (int(trials[penalty][0].sum()), penalty))

"""Multinomial logistic regression on frozen features, its penalty chosen by stratified cross-validation.

Minimised is the mean cross-entropy plus ``penalty / 2`` times the squared norm of the weights, biases left free: with
n samples scikit-learn's C is 1 / (n penalty). The solver is L-BFGS with warm starts from strong penalties to weak ones,
in the features' principal axes and scaled there by the curvature that each axis has at the start.

The head is to work on other networks' features too, which are the same only up to some noise. So features that these
samples hardly use are not brought to variance 1, which would give them large weights, and of penalties whose
cross-entropy cannot be told apart the strongest is taken: the one-standard-error rule of Breiman, Friedman, Olshen and
Stone, "Classification and Regression Trees", 1984.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

PENALTIES = tuple(10.0**-step for step in range(-1, 6))  # from 10 down to 1e-5, then half a decade above the choice
FOLDS = 5
MAX_STEPS = 100
# Steps end where they change the loss by less. While choosing, a rough answer ranks the penalties as well.
TOLERANCE, ROUGH_TOLERANCE = 1e-7, 1e-5
ROWS = 8192  # at a time, so that logits take little memory


@dataclass(frozen=True)
class LogisticFit:
    """Logits are weight @ features + bias.

    Attributes:
        weight: (K, F), float32.
        bias: (K,), float32.
        penalty: of the squared weights of scaled features.
        correct: (N,), bool, whether a fit that had not seen the sample told its class; None without cross-validation.
        held_out: (N,), bool, which samples were ever held out: those of classes with two samples or more.
        known: (N,), bool, whether the fit itself, which has seen the sample, tells its class.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    correct: Tensor | None
    held_out: Tensor
    known: Tensor

    @property
    def accuracies(self) -> tuple[float, float] | None:
        """On samples that the fit has seen, and on the same ones in cross-validation; None without that."""
        if self.correct is None:
            return None
        seen, unseen = (float(told[self.held_out].float().mean()) for told in (self.known, self.correct))
        return seen, unseen

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
        penalty: chosen if None: the strongest whose cross-entropy on samples held out is within one standard error of
            the least. Where every class has one sample only there is nothing to choose by: it is the middle one then.
        standardize: whether every feature is divided first by the root of its variance plus the mean variance of all;
            the result takes raw features.
        generator: draws the folds.
        overwrite: whether the features' memory may be used; otherwise a copy is made of them.
    """
    rows = features if overwrite else features.float().clone()
    mean, scale = rows.mean(dim=0), torch.ones_like(rows[0])
    if standardize:
        variance = rows.var(dim=0, unbiased=False)
        scale = (variance + variance.mean()).clamp(min=torch.finfo(torch.float32).tiny).rsqrt()
    axes, curvature = _to_principal_axes(rows, mean, scale)
    problem = _Problem(rows, labels, num_classes, curvature)
    folds = stratified_folds(labels, FOLDS, generator)
    correct, chosen = None, penalty
    if chosen is None:
        chosen, correct = _choose(problem, folds)
    weight, bias = problem.solved(None, [*(one for one in PENALTIES if one > chosen * 10), chosen], TOLERANCE)
    known = problem.told(weight, bias)
    weight = (axes @ weight).T * scale
    return LogisticFit(weight, bias - weight @ mean, chosen, correct, folds >= 0, known)


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
    values, axes = _eigenvectors(covariance / len(rows))
    for part in rows.split(ROWS):
        part.copy_(part @ axes)
    return axes, values.clamp(min=0)


def _eigenvectors(covariance: Tensor) -> tuple[Tensor, Tensor]:
    # In single precision in half the time, which does not converge where most features are dead.
    try:
        values, vectors = torch.linalg.eigh(covariance.float())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values, vectors = torch.linalg.eigh(covariance)
    return values.float(), vectors.float()


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
        # Weights and their slope as (K, F): BLAS then takes the rows as they lie, in less than half of the time.
        across = weight.T.contiguous()
        loss, slope, shift = 0.0, torch.zeros_like(across), torch.zeros_like(bias)
        for rows, labels, part in zip(self.rows.split(ROWS), self.labels.split(ROWS), share.split(ROWS), strict=True):
            logits = F.linear(rows, across, bias).log_softmax(dim=1)
            loss -= float(logits.gather(1, labels[:, None])[:, 0] @ part)
            error = logits.exp_()
            error.scatter_add_(1, labels[:, None], torch.full_like(part, -1)[:, None])
            error *= part[:, None]
            slope.addmm_(error.T, rows)
            shift += error.sum(dim=0)
        return loss, slope.T, shift

    def told(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Which samples (N,) get their class."""
        parts = zip(self.rows.split(ROWS), self.labels.split(ROWS), strict=True)
        return torch.cat([(rows @ weight + bias).argmax(dim=1) == labels for rows, labels in parts])

    def losses(self, weight: Tensor, bias: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of members (m,), and which of them get their class."""
        logits, labels = self.rows[members] @ weight + bias, self.labels[members]
        return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(dim=1) == labels


@dataclass(frozen=True)
class _Trial:
    """A penalty in cross-validation: loss and success (N,) of samples held out, and what every fold found."""

    losses: Tensor
    correct: Tensor
    found: Solutions

    @classmethod
    def of(cls, problem: _Problem, folds: Tensor, penalty: float, starts: Solutions) -> Self:
        """Every fold predicted by the others."""
        losses, correct, found = torch.zeros_like(problem.rows[:, 0]), torch.zeros_like(folds, dtype=torch.bool), {}
        for number in folds[folds >= 0].unique().tolist():
            found[number] = problem.solved(folds != number, [penalty], ROUGH_TOLERANCE, starts.get(number))
            members = (folds == number).nonzero().flatten()
            losses[members], correct[members] = problem.losses(*found[number], members)
        return cls(losses[folds >= 0], correct, found)

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(self.losses.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return float(self.losses.std() / len(self.losses) ** 0.5)


def _choose(problem: _Problem, folds: Tensor) -> tuple[float, Tensor | None]:
    if not bool((folds >= 0).any()):
        return PENALTIES[len(PENALTIES) // 2], None
    trials: dict[float, _Trial] = {}
    last: Solutions = {}
    for penalty in PENALTIES:
        trials[penalty] = _Trial.of(problem, folds, penalty, last)
        last = trials[penalty].found
        if min(trials.values(), key=lambda trial: trial.loss) is not trials[penalty]:
            break
    chosen = _strongest(trials)
    stronger = chosen * 10**0.5
    trials[stronger] = _Trial.of(problem, folds, stronger, trials[chosen].found)
    chosen = _strongest(trials)
    return chosen, trials[chosen].correct


def _strongest(trials: Mapping[float, _Trial]) -> float:
    """Of penalties that are as good as the best."""
    best = min(trials.values(), key=lambda trial: trial.loss)
    return max(penalty for penalty, trial in trials.items() if trial.loss <= best.loss + best.standard_error)

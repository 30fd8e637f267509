"""Pretrained networks that stay as they came: their features, computed once per image, and heads fitted to them."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from timm_compat.evaluation.cells import find_targets
from timm_compat.evaluation.probe import fitted_head
from timm_compat.methods.logistic import fit_logistic
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import Passed, extract_features
from timm_compat.processes import current_process
from timm_compat.seeding import generator
from timm_compat.space import CompatSpace
from timm_compat.training.feature_cache import Wanted, compute_features
from timm_compat.training.members import Images

NAME, REFERENCE = "features", "reference"


class Features:
    """What networks make of images; those of frozen backbones are computed once per image and kept.

    Args:
        folder: keeps them.
        progress: whether a pass over images shows a bar; on a terminal only if None.
    """

    def __init__(self, folder: Path, progress: bool | None = False) -> None:
        self.folder, self.progress = folder, progress

    @torch.no_grad()
    def of(self, extractor: CompatExtractor, images: Images) -> Tensor:
        """Features (N, D) of the space, at level "pooled", in evaluation mode, on the CPU."""
        if extractor.trainable == "full":
            return extract_features(extractor, images, progress=self.progress).cpu()
        with evaluating(extractor):
            features: Tensor = extractor.interface(self._pooled(extractor, images))
        return features.cpu()

    @torch.no_grad()
    def logits(self, extractor: CompatExtractor, head: TaskHead, images: Images) -> Tensor:
        """What a head says, (N, K), in evaluation mode, on the CPU."""
        with evaluating(head):
            logits: Tensor = head(self.of(extractor, images).to(head.device))
        return logits.float().cpu()

    def right(self, extractor: CompatExtractor, head: TaskHead, images: Images) -> Tensor:
        """Whether each answer is right, (N,): 1 or 0, and -1 for an image of a class that the head does not know."""
        expected = find_targets({NAME: head}, images)[NAME].positions
        right = (self.logits(extractor, head, images).argmax(dim=1) == expected).to(torch.int64)
        return right.masked_fill(expected < 0, -1)

    def accuracy(self, extractor: CompatExtractor, head: TaskHead, images: Images) -> float:
        """Share of right answers, in [0, 1], among images of classes that the head knows."""
        right = self.right(extractor, head, images)
        return float(right[right >= 0].double().mean())

    def probe(self, extractor: CompatExtractor, images: Images, seed: int) -> TaskHead:
        """A linear head, as ``tc.linear_probe`` fits it."""
        names, draw = images.class_names, generator(seed, "probe")
        features = self.of(extractor, images)
        fit = fit_logistic(features, images.labels.cpu(), len(names), generator=draw, overwrite=True)
        return fitted_head(extractor, names, fit, seed)

    @torch.no_grad()
    def standardize(self, extractor: CompatExtractor, images: Images) -> None:
        """Give a frozen network's interface the statistics of these images, as ``split`` does."""
        projected = extractor.interface.projection(self._pooled(extractor, images)).double()
        variance, mean = torch.var_mean(projected, dim=0, correction=0)
        extractor.interface.standardize(mean, variance)

    @torch.no_grad()
    def look(self, extractor: CompatExtractor, reference: CompatExtractor, images: Images) -> Iterator[Passed]:
        """What ``join_with`` asks: pooled features of a frozen network, and the features of a frozen reference."""
        wanted = {NAME: Wanted(extractor), REFERENCE: Wanted(reference)}
        found = compute_features(images, wanted, self.folder, progress=self.progress)
        rank, processes = current_process()
        mine = torch.arange(len(images))[rank::processes]
        new, other = (found[name][mine, 0] for name in (NAME, REFERENCE))
        with evaluating(reference):
            yield Passed(mine, (new, reference.interface(other.to(reference.device)).cpu()), None)

    def _pooled(self, extractor: CompatExtractor, images: Images) -> Tensor:
        wanted = {NAME: Wanted(extractor)}
        return compute_features(images, wanted, self.folder, progress=self.progress)[NAME][:, 0].to(extractor.device)


def with_own_features(extractor: CompatExtractor, space: CompatSpace | None = None) -> CompatExtractor:
    """The same backbone, frozen, whose own pooled features are those of a space, a new one if None."""
    space = space or CompatSpace(extractor.backbone.num_features, methods=())
    made = CompatExtractor(extractor.backbone, space, trainable="adapter").eval()
    made.interface.set_linear(torch.eye(space.feature_dim), torch.zeros(space.feature_dim))
    made.facts = extractor.facts
    return made.to(extractor.device)

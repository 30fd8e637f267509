"""Images, members and hand-written networks that the tables have in common. Speed does not see what is on an image."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import timm_compat as tc
from timm_compat.training.callbacks import Callback

CLASSES = tuple(f"class {number}" for number in range(10))
FEATURES = 64


def random_images(count: int, size: int, seed: int = 0) -> tc.data.ArrayDataset:
    """Random pixels (N, 3, S, S) with random labels of ten classes."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=random)
    return tc.data.ArrayDataset(pixels, torch.randint(10, (count,), generator=random), CLASSES)


def member(space: tc.CompatSpace, name: str, backbone: str, data: tc.data.ArrayDataset, **arguments) -> tc.Member:
    """A new member with a linear head over the ten classes."""
    size = data.images.shape[-1]
    extractor = tc.create_extractor(backbone, space, img_size=size, **arguments)
    return tc.Member(name, extractor, tc.TaskHead(space, data.class_names), data)


def fit_seconds(space: tc.CompatSpace, members: list[tc.Member], config: tc.TrainConfig, clock) -> float:
    """Seconds of the second of two epochs, so that nothing is counted that happens once."""
    ends: list[float] = []

    class Clock(Callback):
        def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
            ends.append(clock())

    tc.fit(space, members, config, callbacks=[Clock()], progress=None)
    return ends[1] - ends[0]


class Plain(nn.Module):
    """What one writes by hand: a timm backbone, a linear layer, BatchNorm, and classifiers."""

    def __init__(self, body: nn.Module, in_features: int, heads: dict[str, int]) -> None:
        super().__init__()
        self.body = body
        self.projection = nn.Linear(in_features, FEATURES)
        self.norm = nn.BatchNorm1d(FEATURES, affine=False)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, count) for name, count in heads.items()})

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 64)."""
        return self.norm(self.projection(self.body(images)))


def adamw(network: nn.Module) -> torch.optim.Optimizer:
    """AdamW that leaves vectors without decay, as the trainer does."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=2e-3)

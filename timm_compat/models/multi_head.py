"""One extractor under several task heads of its space: one pass of the images, the logits of every head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from timm_compat.errors import ConfigError
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead


class MultiHeadModel(nn.Module):
    """Normalised images (B, C, H, W) to logits (B, K) by head's name. Made by ``compose``.

    The parts are shared with the caller, not copied. It is saved as its parts.

    Args:
        extractor: of any level.
        heads: of its space, by name; their order is kept.

    Raises:
        ConfigError: no head, or a name that is no string.
        SpaceMismatchError: a head of another space.

    Example:
        >>> space = tc.CompatSpace(64, methods=["rotation"])
        >>> heads = {"pets": tc.TaskHead(space, ["cat", "dog"]), "birds": tc.TaskHead(space, ["owl"])}
        >>> model = tc.MultiHeadModel(tc.create_extractor("test_resnet", space), heads)
        >>> sorted(model(torch.zeros(2, 3, 160, 160)))
        ['birds', 'pets']
    """

    def __init__(self, extractor: CompatExtractor, heads: Mapping[str, TaskHead]) -> None:
        super().__init__()
        if not heads or not all(isinstance(name, str) for name in heads):
            raise ConfigError(f"heads: expected one or more by name, got {list(heads)}")
        for name, head in heads.items():
            extractor.space.require_same(head.space, "the extractor", f"the head {name!r}")
        self.extractor = extractor
        self.head_names = tuple(heads)
        self._heads = nn.ModuleList(heads.values())  # torch's own dictionary refuses names with dots
        self.num_features = self.head_hidden_size = extractor.num_features
        self.train(extractor.training and all(head.training for head in heads.values()))

    @property
    def heads(self) -> dict[str, TaskHead]:
        """By name."""
        found: Any = self._heads
        return dict(zip(self.head_names, found, strict=True))

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Of every head, in the order of its logits."""
        return {name: head.class_names for name, head in self.heads.items()}

    def forward_features(self, images: Tensor) -> Tensor:
        """Features of the space: (B, D) or (B, D, H', W')."""
        return self.extractor(images)

    def forward_head(self, features: Tensor) -> dict[str, Tensor]:
        """Logits (B, K) of features, by head's name."""
        return {name: head(features) for name, head in zip(self.head_names, self._heads, strict=True)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, K) by head's name."""
        return self.forward_head(self.forward_features(images))

    def save_pretrained(self, folder: str | Path) -> NoReturn:
        """Refused: a folder holds one component.

        Raises:
            ConfigError: always; it says how to save the parts.
        """
        raise ConfigError(
            f"{folder}: expected one component per folder, got an extractor with {len(self.head_names)} heads; save "
            "model.extractor and each of model.heads.values() to a folder of its own, and join them again with compose "
            "or predict EXTRACTOR --head ... --head ..."
        )

    def fuse(self) -> NoReturn:
        """Refused: timm's models have one classifier.

        Raises:
            ConfigError: always; it says how to fuse one head.
        """
        raise ConfigError("fuse: expected one head, got several; fuse each: compose(model.extractor, head).fuse()")

"""Heads: features of a space to logits. Task heads belong to one task, auxiliary heads to the whole space."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from timm_compat.errors import ComponentFileError, ConfigError
from timm_compat.imagenet import named_in_words
from timm_compat.methods.registry import methods_of
from timm_compat.models.blank import build_shapes
from timm_compat.models.interface import as_weights
from timm_compat.models.unwrapping import plain_state
from timm_compat.space import CompatSpace, check_space
from timm_compat.storage.cards import render_card
from timm_compat.storage.component import Component
from timm_compat.storage.facts import Facts
from timm_compat.storage.files import ROOT_KEY, WEIGHTS_FILE, tensors_sha256, write_component
from timm_compat.storage.reading import open_files
from timm_compat.storage.source import Where
from timm_compat.vocabulary import check_class_names, listed

MAX_DEPTH = 16
MAX_HIDDEN_DIM = 65_536


class TaskHead(Component, nn.Module):
    """Features (B, D), or (B, D, H', W') at level "map", to logits (B, K) over class names in order.

    With ``depth=1`` a linear classifier, behind global average pooling at level "map". Each further layer is a
    Linear + ReLU of ``hidden_dim`` features, at level "map" a residual block of two 3 x 3 convolutions. The classifier
    starts at zero: random weights would tie the extractor to directions that no other network of the space knows.

    Args:
        space: where the features live.
        class_names: K names in the order of the logits.
        depth: 1 for a linear head.
        hidden_dim: width of the further layers; D if None. At level "map" always D.
        drop_rate: dropout before the classifier, in training.

    Raises:
        ConfigError: empty or repeated class names, or a number out of range.

    Example:
        >>> head = tc.TaskHead(tc.CompatSpace(64), ["cat", "dog", "owl"])
        >>> head(torch.zeros(2, 64)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        space: CompatSpace,
        class_names: Iterable[str],
        *,
        depth: int = 1,
        hidden_dim: int | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_space(space)
        self.class_names = check_class_names(class_names)
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= MAX_DEPTH:
            raise ConfigError(f"depth: expected an integer from 1 to {MAX_DEPTH}, got {depth!r}")
        width = space.feature_dim if hidden_dim is None else hidden_dim
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= MAX_HIDDEN_DIM:
            raise ConfigError(f"hidden_dim: expected an integer from 1 to {MAX_HIDDEN_DIM}, got {hidden_dim!r}")
        if isinstance(drop_rate, bool) or not isinstance(drop_rate, (int, float)) or not 0 <= drop_rate < 1:
            raise ConfigError(f"drop_rate: expected a number from 0 up to 1, got {drop_rate!r}")
        self.space = space
        self.fit_report: Any = None
        self.num_classes = len(self.class_names)
        self.depth, self.hidden_dim, self.drop_rate = depth, hidden_dim, drop_rate
        if space.level == "map":
            if width != space.feature_dim:
                raise ConfigError(f"hidden_dim: residual blocks keep D = {space.feature_dim}, got {hidden_dim}")
            self.steps = nn.Sequential(*(ResidualBlock(width) for _ in range(depth - 1)), GlobalAveragePool())
        else:
            sizes = [space.feature_dim, *[width] * (depth - 1)]
            pairs = itertools.pairwise(sizes)
            self.steps = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairs))
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(space.feature_dim if depth == 1 else width, self.num_classes)
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)

    @property
    def is_linear(self) -> bool:
        """Whether the logits are a linear function of pooled features."""
        return self.depth == 1

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.classifier.weight.device

    def copy_to(self, space: CompatSpace) -> Self:
        """A copy in another space of the same form; this one stays as it is.

        Raises:
            SpaceMismatchError: another feature dimension, level or normalisation.

        Example:
            >>> head = tc.TaskHead(tc.CompatSpace(feature_dim=16, methods=()), class_names=["cat", "dog"])
            >>> head.copy_to(tc.CompatSpace(feature_dim=16, methods=())).class_names
            ('cat', 'dog')
        """
        self.space.require_form(space)
        made = type(self).from_settings(self.settings(), space)
        made.load_state_dict(self.state_dict())
        made.facts = self.facts
        return made.to(self.device)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.classifier(self.dropout(self.steps(as_weights(features, self.classifier.weight))))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the head to a new folder.

        Raises:
            DraftSpaceError: the space is a draft.
            OutputExistsError: the folder holds something already.
        """
        facts = {"space": self.space.to_config(), **self.settings(), **self.facts.to_config()}
        return write_component(folder, "head", facts, {WEIGHTS_FILE: plain_state(self)}, self.card())

    @classmethod
    def from_pretrained(cls, folder_or_repo_id: str | Path, *, convert: bool = False, **where: Unpack[Where]) -> Self:
        """Read a head from a folder that ``save_pretrained`` wrote, or from the Hub; in evaluation mode.

        Args:
            folder_or_repo_id: a folder where there is one, else a Hub id "owner/name".
            convert: accept other floating-point types and convert them to float32.
            **where: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder`` (see ``Where``).

        Raises:
            ComponentFileError: a file is missing, damaged or of another kind.
            HubError: the Hub refuses or fails.
        """
        files = open_files(folder_or_repo_id, **where)
        config = files.config("head")
        space = CompatSpace.from_config(config[ROOT_KEY].get("space"))
        head = build_shapes(lambda: cls.from_settings(config[ROOT_KEY], space))
        tensors = files.tensors(WEIGHTS_FILE, config, head.state_dict(), convert=convert)
        head.load_state_dict(tensors, assign=True)
        head.facts = Facts.from_config(config[ROOT_KEY])
        head.remember(files.source(config))
        return head.eval()

    def digest(self) -> str:
        """SHA-256 over all weights and statistics."""
        return tensors_sha256(plain_state(self))

    def settings(self) -> dict[str, Any]:
        """The settings from which the head is rebuilt, as JSON values."""
        settings = {"depth": self.depth, "hidden_dim": self.hidden_dim, "drop_rate": self.drop_rate}
        parameters = sum(parameter.numel() for parameter in self.parameters())
        return {"class_names": list(self.class_names), "head": settings, "parameters": parameters}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], space: CompatSpace) -> Self:
        """A head from ``settings()``; its weights are still to be loaded.

        Raises:
            ComponentFileError: a setting is missing or out of range.
        """
        try:
            own = {key: settings["head"][key] for key in ("depth", "hidden_dim", "drop_rate")}
            return cls(space, settings["class_names"], **own)
        except (KeyError, TypeError, ConfigError) as error:
            raise ComponentFileError(f"config.json: expected a head's settings, got {error!r}") from error

    def card(self, repo_id: str | None = None, *, picture: bool = False, subfolder: str = "") -> str:
        """The text of its card.

        Raises:
            DraftSpaceError: the space is a draft.
        """
        values = {
            "class_names": listed(self.class_names, shown_as=named_in_words),
            "num_classes": str(self.num_classes),
            "parameters": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            "feature_dim": str(self.space.feature_dim),
            "space": self.space.fingerprint,
        }
        return render_card(
            "head",
            values,
            self.space.tags("head"),
            self.facts,
            repo_id=repo_id,
            picture=picture,
            class_names=self.class_names,
            subfolder=subfolder,
        )


class AuxiliaryHead(nn.Module):
    """A linear head that every network of a space shares, such as "rotation"; at level "map" behind average pooling.

    It starts from the space's tensors; those of a final space are frozen.

    Args:
        space: must share this head and hold its tensors.
        method: name of the method whose head it is.

    Raises:
        ConfigError: the space does not share such a head.
        DraftSpaceError: only the space's definition is at hand.

    Example:
        >>> space = tc.CompatSpace(64, methods=["rotation"])
        >>> tc.AuxiliaryHead(space, "rotation")(torch.zeros(2, 64)).shape
        torch.Size([2, 4])
    """

    def __init__(self, space: CompatSpace, method: str) -> None:
        super().__init__()
        check_space(space)
        known = methods_of(set(space.methods) & {method})
        if not any(one.shapes(space.feature_dim, len(space.class_names)) for one in known):
            raise ConfigError(
                f"{method}: expected it among the space's methods, got {', '.join(space.methods) or 'none'}"
            )
        self.name = method
        self.pool = GlobalAveragePool() if space.level == "map" else nn.Identity()
        frozen = space.is_final or not known[0].is_trained
        self.weight = nn.Parameter(space.shared[f"{method}.weight"].clone(), requires_grad=not frozen)
        bias = space.shared.get(f"{method}.bias")
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=not frozen)
        self.space, self.num_classes = space, len(self.weight)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the first logits, where these are classes of the space's vocabulary; else none."""
        return self.space.class_names if any(known.uses_classes for known in methods_of([self.name])) else ()

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, D) or (B, D, H', W')."""
        return nn.functional.linear(as_weights(self.pool(features), self.weight), self.weight, self.bias)

    def shared_tensors(self) -> dict[str, Tensor]:
        """The tensors under their names in the space."""
        return {f"{self.name}.{key}": value.detach() for key, value in self.named_parameters()}


class CommonClassesHead(AuxiliaryHead):
    """Logits (B, K) over the space's class vocabulary (Gygli et al. 2021, arXiv 2004.03898).

    Example:
        >>> space = tc.CompatSpace(64, ["cat", "dog"], ["common_classes"])
        >>> tc.CommonClassesHead(space)(torch.zeros(3, 64)).shape
        torch.Size([3, 2])
    """

    def __init__(self, space: CompatSpace) -> None:
        super().__init__(space, "common_classes")


class GlobalAveragePool(nn.Module):
    """(B, D, H', W') to (B, D)."""

    def forward(self, features: Tensor) -> Tensor:
        """Mean over positions."""
        return features.mean(dim=(2, 3))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm around a shortcut (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H', W') to the same."""
        hidden = self.act(self.bn1(self.conv1(features)))
        return self.act(features + self.bn2(self.conv2(hidden)))


def auxiliary_heads(space: CompatSpace) -> nn.ModuleDict:
    """The auxiliary heads that a space shares, by method name."""
    sharing = {name.partition(".")[0] for name in space.shared}
    return nn.ModuleDict({name: AuxiliaryHead(space, name) for name in space.methods if name in sharing})

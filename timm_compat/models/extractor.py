"""The extractor: a timm backbone plus the interface of a space; images to features for all heads of the space."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from timm_compat.data.transforms import inference_transform
from timm_compat.errors import ConfigError
from timm_compat.methods.initial_weights import same_start, start_name
from timm_compat.models.backbone import Backbone
from timm_compat.models.backbone_build import adopt_backbone, build_backbone
from timm_compat.models.backbone_config import backbone_facts, backbone_from_config, timm_config
from timm_compat.models.blank import build_shapes, with_tensors
from timm_compat.models.interface import Interface
from timm_compat.models.preprocess import Preprocess
from timm_compat.models.thin import base_tensors, find_base, implied_identity, leave_out_identity
from timm_compat.models.unwrapping import plain_name, plain_state, unwrapped
from timm_compat.space import CompatSpace, check_space
from timm_compat.storage.base import Base
from timm_compat.storage.cards import render_card
from timm_compat.storage.component import Component
from timm_compat.storage.facts import Facts
from timm_compat.storage.files import (
    INTERFACE_FILE,
    ROOT_KEY,
    THIN_FORMAT,
    WEIGHTS_FILE,
    check_new_folder,
    tensors_sha256,
    write_component,
)
from timm_compat.storage.reading import cached_commit, open_files
from timm_compat.storage.source import Where

WHOLE_IMAGE = 1.0  # crop_pct of networks that start at random: nothing demands that they see less
TRAINABLE = ("full", "adapter", "frozen")
RELATIONS = {"full": "finetune", "adapter": "adapter", "frozen": "adapter"}  # to the base model, in the Hub's words


class CompatExtractor(Component, nn.Module):
    """Images (B, C, H, W) to features of a space: (B, D), or (B, D, H', W') at level "map".

    Built by ``create_extractor`` or ``from_pretrained``. It follows timm's conventions for a model without classifier:
    ``num_features`` is D, ``num_classes`` is 0, ``pretrained_cfg`` is the backbone's.

    Args:
        backbone: source of features.
        space: where the features live.
        trainable: "full"; "adapter": only the interface is trained, the backbone's weights, BatchNorm statistics and
            dropout stay as they are, even in training mode; "frozen": the interface is frozen, too.

    Raises:
        ConfigError: ``trainable`` is something else.

    Example:
        >>> space = tc.CompatSpace(64, methods=["rotation"]).finalize()
        >>> folder = tc.create_extractor("test_resnet", space).save_pretrained("extractor")
        >>> extractor = tc.CompatExtractor.from_pretrained(folder)
        >>> images = torch.zeros(2, 3, 200, 300, dtype=torch.uint8)  # of any size
        >>> extractor(extractor.preprocess(images)).shape
        torch.Size([2, 64])
    """

    num_classes = 0
    _recorded_relation: str | None = None

    def __init__(self, backbone: Backbone, space: CompatSpace, trainable: str = "full") -> None:
        super().__init__()
        if trainable not in TRAINABLE:
            raise ConfigError(f"trainable: expected one of {', '.join(TRAINABLE)}, got {trainable!r}")
        self.backbone = backbone
        self.interface = Interface(
            backbone.num_features, space.feature_dim, level=space.level, normalization=space.normalization
        )
        self.preprocess = Preprocess(backbone.data_config)
        self.space = space
        self.trainable = trainable
        self.num_features = space.feature_dim
        self.fit_report: Any = None
        if trainable != "full":
            backbone.requires_grad_(False)
        if trainable == "frozen":
            self.interface.requires_grad_(False)
        self.train(self.training)

    @property
    def architecture(self) -> str:
        """The backbone's name in timm's registry."""
        return self.backbone.architecture

    @property
    def data_config(self) -> dict[str, Any]:
        """Preprocessing as timm resolves it: input_size, mean, std, interpolation, crop_pct, crop_mode."""
        return dict(self.backbone.data_config)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the backbone's weights."""
        return dict(unwrapped(self.backbone.model).pretrained_cfg)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.preprocess.mean.device

    def copy_to(self, space: CompatSpace, trainable: str | None = None) -> "CompatExtractor":
        """A copy in another space of the same form; this one stays as it is.

        Args:
            space: of the copy.
            trainable: of the copy, as ``create_extractor`` takes it; that of this one if None.

        Raises:
            SpaceMismatchError: another feature dimension, level or normalisation.

        Example:
            >>> space = tc.CompatSpace(feature_dim=16, methods=())
            >>> extractor = tc.create_extractor("test_resnet", space, pretrained=False)
            >>> extractor.copy_to(tc.CompatSpace(feature_dim=16, methods=())).space is space
            False
        """
        self.space.require_form(space)
        backbone, trainable = copy.deepcopy(self.backbone), trainable or self.trainable
        if trainable == "full" and self.trainable != "full":
            backbone.requires_grad_()
        made = CompatExtractor(backbone, space, trainable)
        made.interface.load_state_dict(self.interface.state_dict())
        made.facts = self.facts
        return made.to(self.device)

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images.

        Args:
            images: (B, C, H, W), floating point, normalised (see ``preprocess`` and ``transform``).

        Returns:
            (B, D), or (B, D, H', W') at level "map".

        Raises:
            ImageError: wrong rank, channels, size or dtype.
        """
        return self.interface(self.backbone(images))

    def transform(self) -> Any:
        """timm's evaluation transform for single PIL images of any mode: resize, centre crop, to tensor, normalise.

        Equal to ``preprocess`` of the image's pixels to within rounding.
        """
        return inference_transform(self.backbone.data_config)

    def train(self, mode: bool = True) -> Self:
        """Training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if self.trainable != "full":
            self.backbone.eval()
        if self.trainable == "frozen":
            self.interface.eval()
        return self

    def digest(self) -> str:
        """SHA-256 over all weights and statistics; identifies this extractor as a reference."""
        return tensors_sha256(plain_state(self))

    def save_pretrained(self, folder: str | Path, *, thin: bool = False) -> Path:
        """Write the extractor to a new folder; ``model.safetensors`` there is a checkpoint that plain timm loads.

        Args:
            folder: new or empty.
            thin: leave the backbone's weights where they are, in the Hub repository ``facts.base_model``: the folder
                then names repository, commit and SHA-256 in their place, and loading fetches and checks them. Only for
                a backbone that is unchanged (``trainable="adapter"``, ``split``, ``join``).

        Raises:
            DraftSpaceError: the space is a draft.
            ConfigError: the backbone was built with arguments that are no JSON values; or ``thin``, and no base is
                known, or it holds other weights.
            HubError: ``thin``, and the base can neither be found in the cache nor fetched.
            OutputExistsError: the folder holds something already.
        """
        backbone = unwrapped(self.backbone)
        facts = {"space": self.space.to_config(), **self.settings(), **self.facts.to_config()}
        weights = {WEIGHTS_FILE: plain_state(backbone.model), INTERFACE_FILE: plain_state(self.interface)}
        if self.facts.base_model is not None:
            facts["base_model_relation"] = self.relation
        root, unbounded = timm_config(backbone), unbounded_buffers(backbone.model)
        if thin:
            check_new_folder(folder)
            facts["base"] = find_base(backbone.model, self.facts, unbounded).to_config()
            del weights[WEIGHTS_FILE]
            facts |= leave_out_identity(weights[INTERFACE_FILE])
        number = THIN_FORMAT if thin else None
        return write_component(folder, "extractor", facts, weights, self.card(thin=thin), root, unbounded, number)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo_id: str | Path,
        *,
        trainable: str = "full",
        convert: bool = False,
        base: str | Path | None = None,
        **where: Unpack[Where],
    ) -> Self:
        """Read an extractor from a folder that ``save_pretrained`` wrote, or from the Hub; in evaluation mode.

        Nothing else is downloaded, unless the extractor is a thin one: then its base's weights, from the repository and
        the commit that it names.

        Args:
            folder_or_repo_id: a folder where there is one, else a Hub id "owner/name".
            trainable: "full", "adapter" or "frozen".
            convert: accept other floating-point types and convert them to float32.
            base: a thin extractor's base on disk, taken if its hash is the one that is named.
            **where: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder`` (see ``Where``).

        Raises:
            ComponentFileError: a file is missing, damaged, of another kind, or asks for something that is not allowed.
            HubError: the Hub refuses or fails.
        """
        files = open_files(folder_or_repo_id, **where)
        config = files.config("extractor")
        space = CompatSpace.from_config(config[ROOT_KEY].get("space"))

        def build() -> Any:
            return cls(backbone_from_config(config, space.level), space, trainable)

        shapes = build_shapes(build)
        model, interface = shapes.backbone.model, shapes.interface
        unbounded = unbounded_buffers(model)
        if "base" in config[ROOT_KEY]:
            asked = Base.from_config(config[ROOT_KEY]["base"])
            weights = base_tensors(asked, model.state_dict(), unbounded, base, where)
        elif base is not None:
            raise ConfigError(f"base: expected none, for {files} holds its backbone's weights itself; drop it")
        else:
            weights = files.tensors(WEIGHTS_FILE, config, model.state_dict(), unbounded, convert)
        wanted = dict(interface.state_dict())
        implied = implied_identity(config[ROOT_KEY], wanted)
        fitted = files.tensors(INTERFACE_FILE, config, wanted, convert=convert) | implied
        tensors = {f"backbone.model.{name}": tensor for name, tensor in weights.items()}
        tensors |= {f"interface.{name}": tensor for name, tensor in fitted.items()}
        extractor = with_tensors(shapes, build, tensors)
        extractor.facts = Facts.from_config(config[ROOT_KEY])
        extractor.remember(files.source(config))
        recorded = config[ROOT_KEY].get("base_model_relation")
        extractor._recorded_relation = recorded if recorded in RELATIONS.values() else None
        return extractor.eval()

    @property
    def relation(self) -> str:
        """To its base model in the Hub's terms, "adapter" or "finetune"; a loaded component keeps the recorded one."""
        recorded = self._recorded_relation
        return recorded if recorded is not None and self.known_source() is not None else RELATIONS[self.trainable]

    def settings(self) -> dict[str, Any]:
        """The settings of backbone and interface that ``config.json`` holds, as JSON values."""
        return {**backbone_facts(unwrapped(self.backbone)), "parameters": self.num_parameters}

    @property
    def num_parameters(self) -> int:
        """Of backbone and interface."""
        return sum(parameter.numel() for parameter in self.parameters())

    def card(
        self, repo_id: str | None = None, *, picture: bool = False, subfolder: str = "", thin: bool = False
    ) -> str:
        """The text of its card.

        Raises:
            DraftSpaceError: the space is a draft.
        """
        channels, *size = self.backbone.input_size
        values = {
            "architecture": self.architecture,
            "channels": str(channels),
            "feature_dim": str(self.space.feature_dim),
            "level": self.space.level,
            "parameters": f"{self.num_parameters:,}",
            "space": self.space.fingerprint,
            "input_size": " x ".join(str(side) for side in (channels, *size)),
            "weights": f"those of {self.facts.base_model}, fetched from there" if thin else "in this repository",
        }
        return render_card(
            "extractor",
            values,
            self.space.tags("extractor", THIN_FORMAT if thin else None),
            self.facts,
            repo_id=repo_id,
            picture=picture,
            relation=self.relation,
            subfolder=subfolder,
            timm_source=self.facts.base_model if thin else None,
        )


def origin_facts(hub_id: str | None) -> Facts:
    """Where weights that timm has just fetched come from: the Hub's cache tells their commit."""
    if not hub_id:
        return Facts()
    repo_id, _, revision = hub_id.partition("@")
    commit = cached_commit(repo_id, WEIGHTS_FILE, revision or None)
    return Facts(base_model=repo_id, base_model_commit=commit)


def unbounded_buffers(model: nn.Module) -> set[str]:
    """Names of the buffers that may hold infinity."""
    # Some architectures (gemma4) keep the bounds of their activations as buffers, infinite where there are none.
    statistics = ("running_mean", "running_var")
    names = {name for name, _ in model.named_buffers() if not name.endswith(statistics)}
    return {plain_name(model, name) for name in names}


def _check_crop(crop_pct: object) -> None:
    if isinstance(crop_pct, bool) or not isinstance(crop_pct, (int, float)) or not 0 < crop_pct <= 1:
        raise ConfigError(f"crop_pct: expected a number over 0 and at most 1, got {crop_pct!r}")


def create_extractor(
    model: str | nn.Module,
    space: CompatSpace,
    *,
    pretrained: bool = False,
    trainable: str = "full",
    out_index: int = -1,
    img_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    **timm_kwargs: Any,
) -> CompatExtractor:
    """Make any timm backbone a compatible extractor.

    Args:
        model: a name for ``timm.create_model``, or a model that timm built (copied, without its classifier;
            compiled and data-parallel wrappers are removed).
        space: the space of its features.
        pretrained: whether to load timm's weights (only if ``model`` is a name).
        trainable: "full", "adapter" or "frozen".
        out_index: at level "map" the stage to read, an index into timm's intermediate features.
        img_size: H = W, or (H, W), of the images; the model's own if None. Works for every architecture: if its size
            is fixed, timm gets the new size; otherwise only the preprocessing changes.
        crop_pct: share of an image's side that the backbone sees, over 0 and at most 1. If None, timm's own
            for weights that were trained with it (``pretrained``, or a model given), else 1.0: the whole image.
        **timm_kwargs: timm's own keywords, such as ``in_chans``, ``drop_path_rate``.

    Raises:
        BackboneError: unknown name (with close matches), arguments that the architecture does not take, weights that
            cannot be loaded, or no features of that level.
        ConfigError: an argument out of range.
        SpaceMismatchError: "initial_weights" is among the space's methods and this start is another one.

    Example:
        >>> space = tc.CompatSpace(64, methods=["rotation"])
        >>> extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=32)
        >>> extractor(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 64])
    """
    check_space(space)
    model = unwrapped(model)
    is_built = isinstance(model, nn.Module)
    if is_built and (pretrained or timm_kwargs):
        raise ConfigError("pretrained and timm's keywords build a model; this one is built already: drop them")
    crop = WHOLE_IMAGE if crop_pct is None and not (is_built or pretrained) else crop_pct
    if crop is not None:
        _check_crop(crop)
    form: dict[str, Any] = {"level": space.level, "out_index": out_index, "img_size": img_size}

    def build() -> CompatExtractor:
        backbone = (
            adopt_backbone(model, **form)
            if isinstance(model, nn.Module)
            else build_backbone(model, pretrained=pretrained, **form, **timm_kwargs)
        )
        if crop is not None:
            backbone.set_data_config({**backbone.data_config, "crop_pct": float(crop)})
        extractor = CompatExtractor(backbone, space, trainable)
        if pretrained:
            extractor.facts = origin_facts(backbone.model.pretrained_cfg.get("hf_hub_id"))
        return extractor

    if is_built or "initial_weights" not in space.methods:
        return build()
    extractor = same_start(space.seed, build)
    backbone = extractor.backbone
    start = start_name(backbone.architecture, backbone.out_index, backbone.model_args)
    space.pin_initial_weights(start, extractor.digest())
    return extractor

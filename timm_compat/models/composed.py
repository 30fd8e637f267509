"""An extractor and a task head of one space, put together as a classifier without fine-tuning."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, overload

from timm.models import filter_pretrained_cfg
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from timm_compat.errors import ComponentFileError, FuseError
from timm_compat.imagenet import named_in_words
from timm_compat.models.backbone_config import backbone_facts, backbone_from_config, timm_config
from timm_compat.models.blank import build_shapes, with_tensors
from timm_compat.models.extractor import CompatExtractor, unbounded_buffers
from timm_compat.models.fusion import fuse, fused_arguments
from timm_compat.models.heads import TaskHead
from timm_compat.models.multi_head import MultiHeadModel
from timm_compat.models.unwrapping import plain_state, unwrapped
from timm_compat.space import CompatSpace
from timm_compat.storage.cards import render_card
from timm_compat.storage.component import Component
from timm_compat.storage.facts import Facts
from timm_compat.storage.files import ROOT_KEY, WEIGHTS_FILE, tensors_sha256, write_component
from timm_compat.storage.reading import open_files
from timm_compat.storage.source import Source, Where
from timm_compat.vocabulary import listed

TIMM_NAME = "compat_model"  # of the entry in timm's registry (models/registry.py)
FUSED_TAG = "timm-compat-fused"


class CompatModel(Component, nn.Module):
    """A classifier: normalised images (B, C, H, W) to logits (B, K). Made by ``compose``.

    It follows timm's conventions: ``forward_features``, ``forward_head``, ``get_classifier``, ``num_classes``,
    ``num_features``, ``pretrained_cfg``. The parts are shared with the caller, not copied.

    Raises:
        SpaceMismatchError: the parts live in different spaces.

    Example:
        >>> space = tc.CompatSpace(64, methods=["rotation"])
        >>> model = tc.compose(tc.create_extractor("test_resnet", space), tc.TaskHead(space, ["cat", "dog"])).eval()
        >>> plain = model.fuse()  # a timm model, nothing of this package inside
        >>> type(plain).__name__, plain.num_classes
        ('ResNet', 2)
    """

    def __init__(self, extractor: CompatExtractor, head: TaskHead) -> None:
        super().__init__()
        extractor, head = unwrapped(extractor), unwrapped(head)
        extractor.space.require_same(head.space, "the extractor", "the head")
        self.extractor = extractor
        self.head = head
        self.num_classes = head.num_classes
        self.num_features = self.head_hidden_size = extractor.num_features
        self.class_names = head.class_names
        self.swap_report: Any = None
        self.train(extractor.training and head.training)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The backbone's preprocessing, and this model's classes, in timm's form."""
        own = {"num_classes": self.num_classes, "label_names": list(self.class_names)}
        return {**self._body.pretrained_cfg, **self._body.data_config, **own}

    def forward_features(self, images: Tensor) -> Tensor:
        """Features of the space: (B, D) or (B, D, H', W')."""
        return self.extractor(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K) of features; the features themselves with ``pre_logits``."""
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """The task head."""
        return self.head

    def fuse(self) -> nn.Module:
        """A plain timm model with the same logits in evaluation mode, without anything of timm_compat inside.

        Interface and head, both linear in evaluation mode, become the weights of timm's own classifier. The result is
        in evaluation mode; its logits are compared with this model's on random images.

        Raises:
            FuseError: the head or the interface is not linear, or timm's classifier is not; the message says which.
            ConfigError: timm would rebuild it as another network, because the backbone was changed.
        """
        plain: Any = fuse(self._body, self._top)
        # What names the source of the base model's weights would name other weights than these.
        plain.pretrained_cfg = plain.default_cfg = filter_pretrained_cfg(self.pretrained_cfg, remove_source=True)
        return plain

    def save_pretrained(self, folder: str | Path, *, fused: bool = False) -> Path:
        """Write the model to a new folder.

        Args:
            folder: new or empty.
            fused: write ``fuse()``'s plain timm model instead, which timm loads without this package.

        Raises:
            DraftSpaceError: the space is a draft.
            FuseError: it cannot be fused.
            ConfigError: timm would rebuild the backbone as another network, because it was changed.
            OutputExistsError: the folder holds something already.
        """
        backbone, space = unwrapped(self._body.backbone), self._body.space
        facts = {
            "space": space.to_config(),
            **self._top.settings(),
            "parameters": self.num_parameters,
            "parts": {name: _part(part) for name, part in self.parts.items()},
            **self.facts.to_config(),
        }
        timm_keys = timm_config(backbone)
        labels = {"num_classes": self.num_classes, "label_names": list(self.class_names)}
        preprocessing = {**timm_keys["pretrained_cfg"], "num_classes": self.num_classes}
        unbounded = unbounded_buffers(self)
        if fused:
            plain = self.fuse()
            weights = {WEIGHTS_FILE: plain.state_dict()}
            model_args = fused_arguments(backbone, plain)
            root = {**timm_keys, **labels, "model_args": model_args, "pretrained_cfg": preprocessing}
            facts |= {"fused": True, "preprocessing": backbone_facts(backbone)["preprocessing"]}
            unbounded = unbounded_buffers(backbone.model)
        else:
            weights = {WEIGHTS_FILE: plain_state(self)}
            facts["extractor"] = {"timm": timm_keys, **backbone_facts(backbone)}
            root = {"architecture": TIMM_NAME, "num_features": self.num_features, **labels}
            root["pretrained_cfg"] = preprocessing
        return write_component(folder, "model", facts, weights, self.card(fused=fused), root, unbounded)

    @classmethod
    def from_pretrained(
        cls, folder_or_repo_id: str | Path, *, convert: bool = False, weights: bool = True, **where: Unpack[Where]
    ) -> Self:
        """Read a composed model from a folder that ``save_pretrained`` wrote, or from the Hub; in evaluation mode.

        Args:
            folder_or_repo_id: a folder where there is one, else a Hub id "owner/name".
            convert: accept other floating-point types and convert them to float32.
            weights: whether to load them; otherwise the model has new weights.
            **where: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder`` (see ``Where``).

        Raises:
            ComponentFileError: a file is missing, damaged or of another kind, or the model is a fused one.
            HubError: the Hub refuses or fails.
        """
        files = open_files(folder_or_repo_id, **where)
        config = files.config("model")
        ours = config[ROOT_KEY]
        if ours.get("fused"):
            raise ComponentFileError(
                f"{files}: expected a composed model, got a fused one, which is plain timm; "
                f"load it so: timm.create_model('hf-hub:{folder_or_repo_id}', pretrained=True)"
            )
        shapes = build_shapes(lambda: cls(*_parts(ours)))
        if not weights:
            return cls(*_parts(ours))
        tensors = files.tensors(WEIGHTS_FILE, config, shapes.state_dict(), unbounded_buffers(shapes), convert)
        model = with_tensors(shapes, lambda: cls(*_parts(ours)), tensors)
        model.facts = Facts.from_config(ours)
        model.remember(files.source(config))
        model._remember_parts(ours.get("parts"))
        return model.eval()

    def _remember_parts(self, recorded: Any) -> None:
        known = recorded if isinstance(recorded, dict) else {}
        for name, part in self.parts.items():
            source = Source.from_config(known.get(name))
            if source is not None and known[name].get("digest") == part.digest():
                part.remember(source)

    @property
    def _body(self) -> CompatExtractor:
        # A user may have compiled or wrapped a part in its place.
        body: CompatExtractor = unwrapped(self.extractor)
        return body

    @property
    def _top(self) -> TaskHead:
        top: TaskHead = unwrapped(self.head)
        return top

    @property
    def parts(self) -> dict[str, CompatExtractor | TaskHead]:
        """Extractor and head by name."""
        return {"extractor": self._body, "head": self._top}

    def _base_models(self, sources: Iterable[Source | None]) -> list[str]:
        """Where the parts were published, or else what they started from; the model's own facts say it themselves."""
        published = [source.location for source in sources if source and source.commit]
        started = [part.facts.base_model for part in self.parts.values() if part.facts.base_model]
        return published or ([] if self.facts.base_model else list(dict.fromkeys(started)))

    @property
    def num_parameters(self) -> int:
        """Of both parts."""
        return sum(parameter.numel() for parameter in self.parameters())

    def digest(self) -> str:
        """SHA-256 over all weights and statistics."""
        return tensors_sha256(plain_state(self))

    def card(
        self, repo_id: str | None = None, *, picture: bool = False, subfolder: str = "", fused: bool = False
    ) -> str:
        """The text of its card; that of the fused model if ``fused``.

        Raises:
            DraftSpaceError: the space is a draft.
        """
        space, size = self._body.space, unwrapped(self._body.backbone).input_size
        sources = {name: part.known_source() for name, part in self.parts.items()}
        values = {
            "architecture": self._body.architecture,
            "channels": str(size[0]),
            "class_names": listed(self.class_names, shown_as=named_in_words),
            "num_classes": str(self.num_classes),
            "parameters": f"{self.num_parameters:,}",
            "input_size": " x ".join(map(str, size)),
            "space": space.fingerprint,
            **{name: place_text(source) for name, source in sources.items()},
        }
        return render_card(
            "fused" if fused else "model",
            values,
            [*space.tags("model"), *([FUSED_TAG] if fused else [])],
            self.facts,
            repo_id=repo_id,
            picture=picture,
            relation="merge",
            base_models=self._base_models(sources.values()),
            class_names=self.class_names,
            subfolder=subfolder,
        )


@overload
def compose(extractor: CompatExtractor, head: TaskHead) -> CompatModel: ...


@overload
def compose(extractor: CompatExtractor, head: Mapping[str, TaskHead]) -> MultiHeadModel: ...


def compose(extractor: CompatExtractor, head: TaskHead | Mapping[str, TaskHead]) -> CompatModel | MultiHeadModel:
    """Put an extractor and a head of one space together, or several heads by name, which share the extractor's pass.

    Returns:
        A classifier, or with several heads a model that gives logits (B, K) by head's name.

    Raises:
        ConfigError: a mapping without heads.
        SpaceMismatchError: they live in different spaces; the message lists the fields that differ.

    Example:
        >>> space = tc.CompatSpace(64, methods=["rotation"])
        >>> extractor, head = tc.create_extractor("test_vit", space), tc.TaskHead(space, ["cat", "dog"])
        >>> images = extractor.preprocess(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
        >>> tc.compose(extractor, head)(images).shape
        torch.Size([2, 2])
        >>> both = tc.compose(extractor, {"pets": head, "birds": tc.TaskHead(space, ["owl"])})
        >>> {name: tuple(logits.shape) for name, logits in both(images).items()}
        {'pets': (2, 2), 'birds': (2, 1)}
    """
    return MultiHeadModel(extractor, head) if isinstance(head, Mapping) else CompatModel(extractor, head)


def plainest(model: CompatModel) -> nn.Module:
    """The plain timm model that it fuses to, or itself where it does not fuse."""
    try:
        return model.fuse()
    except FuseError:
        return model


def _part(part: CompatExtractor | TaskHead) -> dict[str, Any]:
    source = part.known_source()
    return {"digest": part.digest(), **({} if source is None else source.to_config())}


def place_text(source: Source | None) -> str:
    """Where a part of a model was published, for its card."""
    if source is None or source.commit is None:
        return "not published as it is"
    subfolder = f", subfolder `{source.subfolder}`," if source.subfolder else ""
    return f"`{source.location}`{subfolder} at commit `{source.commit}`"


def _parts(ours: Mapping[str, Any]) -> tuple[CompatExtractor, TaskHead]:
    space = CompatSpace.from_config(ours.get("space"))
    own = ours.get("extractor")
    if not isinstance(own, dict) or not isinstance(own.get("timm"), dict):
        raise ComponentFileError(f"config.json: expected an extractor's settings, got {own!r:.80}")
    backbone = backbone_from_config({**own["timm"], ROOT_KEY: own}, space.level)
    return CompatExtractor(backbone, space), TaskHead.from_settings(ours, space)

"""The compatibility space: the contract that the extractors and heads of one family share.

Plain facts only. Auxiliary heads stand here as tensors; the modules that use them are built in ``models/heads``.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor
from typing_extensions import Self, Unpack

from timm_compat.errors import ComponentFileError, ConfigError, DraftSpaceError, SpaceMismatchError
from timm_compat.imagenet import named_in_words
from timm_compat.methods.registry import check_tensors, initial_tensors, method_names, methods_of, shared_shapes
from timm_compat.storage.cards import render_card
from timm_compat.storage.component import Component
from timm_compat.storage.facts import Facts
from timm_compat.storage.files import (
    FORMAT,
    ROOT_KEY,
    WEIGHTS_FILE,
    check_format,
    tensor_sha256,
    tensors_sha256,
    write_component,
)
from timm_compat.storage.reading import open_files
from timm_compat.storage.source import Where
from timm_compat.vocabulary import check_class_names, listed

LEVELS = ("pooled", "map")
NORMALIZATIONS = ("batch", "layer", "none")
MAX_FEATURE_DIM = 65_536
FINGERPRINT_DIGITS = 16


class CompatSpace(Component):
    """What decides whether an extractor and a head fit: dimension, normalisation, and what fixes the coordinates.

    A new space is a *draft*: its auxiliary heads may still be trained, its components may be composed in memory but
    not saved. Joint training, or ``finalize()``, freezes it and gives it a fingerprint.

    Args:
        feature_dim: number D of features (channels at level "map").
        class_names: ordered vocabulary of the classes that tasks may have in common.
        methods: what the space shares; the paper's three are "rotation", "common_classes" and
            "initial_weights" (Gygli et al., AAAI 2021, https://arxiv.org/abs/2004.03898), "location" and "flip" are
            further self-supervised tasks (Sun et al. 2019, https://arxiv.org/abs/1909.11825), "simplex" is the fixed
            classifier of CoReS (Biondi et al., TPAMI 2023, https://arxiv.org/abs/2111.07632); and those
            that ``register_method`` added.
        level: "pooled" for features (B, D), "map" for features (B, D, H', W').
        normalization: the interface's last step: "batch" (BatchNorm without affine), "layer" (LayerNorm over D
            without affine) or "none".
        seed: initialises the auxiliary heads and, with "initial_weights", every backbone.

    Raises:
        ConfigError: a value out of range, an unknown name, empty or repeated class names.

    Example:
        >>> space = tc.CompatSpace(64, class_names=["cat", "dog"], methods=["common_classes", "rotation"])
        >>> space.is_final
        False
        >>> space.finalize().is_final
        True
    """

    def __init__(
        self,
        feature_dim: int,
        class_names: Iterable[str] = (),
        methods: Iterable[str] = (),
        *,
        level: str = "pooled",
        normalization: str = "batch",
        seed: int = 0,
    ) -> None:
        if isinstance(feature_dim, bool) or not isinstance(feature_dim, int) or not 0 < feature_dim <= MAX_FEATURE_DIM:
            raise ConfigError(f"feature_dim: expected an integer from 1 to {MAX_FEATURE_DIM}, got {feature_dim!r}")
        self.feature_dim = feature_dim
        self.class_names = check_class_names(class_names, least=0)
        # Files written before names were normalised hold others, and a fingerprint is over what is recorded.
        self._recorded_names = self.class_names
        self.methods = _check_methods(methods)
        self.level = _check_choice("level", level, LEVELS)
        self.normalization = _check_choice("normalization", normalization, NORMALIZATIONS)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f"seed: expected an integer, got {seed!r}")
        self.seed = seed
        for method in methods_of(self.methods):
            method.check_space(feature_dim, self.class_names)
        # Made when first asked for: a definition that came in a file must not decide how much memory is taken.
        self._shared: dict[str, Tensor] | None = None
        self._has_tensors = True
        self._digests: dict[str, str] = {}
        self._initial_weights: dict[str, str] = {}
        self._reference: str | None = None
        self._fingerprint: str | None = None
        self._format = FORMAT
        self._draft_id = uuid.uuid4().hex

    @property
    def is_final(self) -> bool:
        """Whether the shared parts are frozen."""
        return self._fingerprint is not None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything that decides compatibility.

        Raises:
            DraftSpaceError: the space is still a draft.
        """
        if self._fingerprint is None:
            raise DraftSpaceError(
                "expected a final space, got a draft: its shared parts may still change; train it, or call finalize()"
            )
        return self._fingerprint

    @property
    def shared(self) -> Mapping[str, Tensor]:
        """The auxiliary heads' tensors by name, such as ``rotation.weight`` (4, D); not to be changed in place.

        Raises:
            DraftSpaceError: only the definition is at hand (it came with an extractor or a head).
        """
        if not self._has_tensors:
            raise DraftSpaceError(
                f"expected the space's tensors, got its definition only (fingerprint {self._fingerprint}); "
                "load the space itself: CompatSpace.from_pretrained(...)"
            )
        if self._shared is None:
            self._shared = initial_tensors(self.methods, self.feature_dim, len(self.class_names), self.seed)
        return MappingProxyType(self._shared)

    @property
    def has_tensors(self) -> bool:
        """Whether the auxiliary heads' tensors are at hand, not the definition only."""
        return self._has_tensors

    @property
    def reference(self) -> str | None:
        """SHA-256 of the reference extractor, where one defines the coordinates."""
        return self._reference

    def finalize(self, shared: Mapping[str, Tensor] | None = None, *, reference: str | None = None) -> Self:
        """Freeze the shared parts; afterwards the space has a fingerprint. On a final space, without arguments: no-op.

        Args:
            shared: trained auxiliary heads' tensors, named and shaped as in ``shared``; the initial ones if left out.
            reference: an extractor's ``digest()``, whose features then define the coordinates.

        Raises:
            DraftSpaceError: already final, or nothing would fix the coordinates.
            ConfigError: tensors of other names, shapes or with NaN, or a reference that is no digest.
        """
        if self.is_final:
            if shared is None and reference is None:
                return self
            raise DraftSpaceError(f"expected a draft, got the final space {self._fingerprint}; make a new space")
        if reference is not None:
            _check_digest(reference)
        if shared is not None:
            self._shared = check_tensors(shared, self._expected_tensors())
        self._digests = {name: tensor_sha256(tensor) for name, tensor in self.shared.items()}
        self._reference = reference
        if not (self._digests or self._reference or self._initial_weights):
            raise DraftSpaceError(
                "nothing pins the coordinates of this space, so no other component could ever fit: "
                f"give methods= (any of {', '.join(method_names())}) or finalize(reference=extractor.digest())"
            )
        self._fingerprint = _fingerprint(self.definition())
        return self

    def pin_initial_weights(self, architecture: str, digest: str) -> None:
        """Record, or check, the digest of the weights from which every extractor of one architecture starts.

        A final space without one for the architecture stays as it is: no earlier member has that architecture.

        Raises:
            SpaceMismatchError: the space has another digest for that architecture.
        """
        known = self._initial_weights.get(architecture)
        if known is None and not self.is_final:
            self._initial_weights[architecture] = digest
        elif known is not None and known != digest:
            raise SpaceMismatchError(
                f"{architecture}: expected initial weights {known[:16]}, got {digest[:16]}; "
                "use the space's seed and the same timm version and arguments"
            )

    def definition(self) -> dict[str, Any]:
        """Everything that decides compatibility, as JSON values; the fingerprint is its hash.

        A loaded space keeps the format that it states, and so its fingerprint.
        """
        return {
            "format": self._format,
            "feature_dim": self.feature_dim,
            "level": self.level,
            "normalization": self.normalization,
            "methods": list(self.methods),
            "class_names": list(self._recorded_names),
            "shared": dict(self._digests),
            "initial_weights": dict(self._initial_weights),
            "reference": self._reference,
        }

    def to_config(self) -> dict[str, Any]:
        """The definition with its fingerprint and seed, as it stands in a component's ``config.json``."""
        return {**self.definition(), "seed": self.seed, "fingerprint": self.fingerprint}

    @classmethod
    def from_config(cls, config: object) -> Self:
        """A final space without its tensors, from ``to_config()``'s values.

        Raises:
            ComponentFileError: a field is missing or wrong, or the fingerprint is not that of the definition.
        """
        if not isinstance(config, dict):
            raise ComponentFileError(f"space: expected a JSON object, got {type(config).__name__}")
        try:
            check_format("space", config["format"], FORMAT)
            space = cls(
                config["feature_dim"],
                config["class_names"],
                config["methods"],
                level=config["level"],
                normalization=config["normalization"],
                seed=config.get("seed", 0),
            )
            space._format = config["format"]
            space._recorded_names = tuple(config["class_names"])
            space._digests = _str_map(config["shared"])
            space._initial_weights = _str_map(config["initial_weights"])
            space._reference = None if config["reference"] is None else _check_digest(config["reference"])
        except (KeyError, TypeError, ConfigError) as error:
            raise ComponentFileError(f"space: expected a complete definition, got {error!r}") from error
        space._fingerprint = _fingerprint(space.definition())
        if space._fingerprint != config.get("fingerprint"):
            raise ComponentFileError(
                f"space: expected fingerprint {space._fingerprint} (recomputed from the definition), "
                f"got {config.get('fingerprint')!r}: the config was changed by hand or is damaged"
            )
        space._has_tensors = False
        return space

    def differences(self, other: "CompatSpace") -> list[str]:
        """The fields in which two spaces differ, one line each; empty when components of both fit together."""
        if self is other or (self.is_final and other.is_final and self._fingerprint == other._fingerprint):
            return []
        if not self.is_final and not other.is_final and self._draft_id == other._draft_id:
            return []
        mine, theirs = self.definition(), other.definition()
        lines = [f"{key}: {_brief(mine[key])} / {_brief(theirs[key])}" for key in mine if mine[key] != theirs[key]]
        if self.is_final != other.is_final:
            lines.append(f"state: {self._state()} / {other._state()}")
        return lines or ["identity: two drafts of the same definition, each still to be trained on its own"]

    def require_same(self, other: "CompatSpace", mine: str, theirs: str) -> None:
        """Refuse components of two spaces.

        Args:
            other: the other component's space.
            mine: what this space's component is called in the message.
            theirs: what the other one is called.

        Raises:
            SpaceMismatchError: the message lists the fields that differ.
        """
        lines = self.differences(other)
        if lines:
            raise SpaceMismatchError(
                f"{mine} and {theirs} live in different spaces ({self._state()} / {other._state()}) and would score "
                f"at chance together; they differ in\n  " + "\n  ".join(lines) + "\n"
                "take components of one fingerprint, or join the backbone to the head's space (timm_compat.join)"
            )

    def require_form(self, other: "CompatSpace") -> None:
        """Refuse a space whose features have another form; the coordinates may differ.

        Raises:
            SpaceMismatchError: another feature dimension, level or normalisation.
        """
        forms = [(one.feature_dim, one.level, one.normalization) for one in (self, other)]
        if forms[0] != forms[1]:
            raise SpaceMismatchError(
                f"expected a space with feature_dim, level and normalization {forms[0]}, got {forms[1]}"
            )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the space with its tensors to a new folder.

        Raises:
            DraftSpaceError: the space is a draft.
            OutputExistsError: the folder holds something already.
        """
        facts = {"space": self.to_config(), **self.facts.to_config()}
        return write_component(folder, "space", facts, {WEIGHTS_FILE: self.shared}, self.card())

    @classmethod
    def from_pretrained(cls, folder_or_repo_id: str | Path, *, convert: bool = False, **where: Unpack[Where]) -> Self:
        """Read a space from a folder that ``save_pretrained`` wrote, or from the Hub.

        Args:
            folder_or_repo_id: a folder where there is one, else a Hub id "owner/name".
            convert: accept other floating-point types.
            **where: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder`` (see ``Where``).

        Raises:
            ComponentFileError: a file is missing, damaged or of another kind.
            HubError: the Hub refuses or fails.
        """
        files = open_files(folder_or_repo_id, **where)
        config = files.config("space")
        space = cls.from_config(config[ROOT_KEY].get("space"))
        tensors = files.tensors(WEIGHTS_FILE, config, space._expected_tensors(), convert=convert)
        digests = {name: tensor_sha256(tensor) for name, tensor in tensors.items()}
        if digests != space._digests:
            raise ComponentFileError(f"{files}: the auxiliary heads are not those of space {space.fingerprint}")
        space._shared, space._has_tensors = tensors, True
        space.facts = Facts.from_config(config[ROOT_KEY])
        space.remember(files.source(config))
        return space

    def digest(self) -> str:
        """SHA-256 over the shared parts' tensors.

        Raises:
            DraftSpaceError: only the definition is at hand.
        """
        return tensors_sha256(self.shared)

    def tags(self, role: str, number: int | None = None) -> list[str]:
        """The Hub tags of a component of this space; ``number`` is its format, that of new ones if None."""
        return [
            "timm-compat",
            f"timm-compat-format:{FORMAT if number is None else number}",
            f"timm-compat-role:{role}",
            f"timm-compat-space:{self.fingerprint}",
            f"timm-compat-dim:{self.feature_dim}",
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copied extractor (an averaged model, say) stays in the same space.
        return self

    def __repr__(self) -> str:
        return (
            f"CompatSpace({self._state()}, feature_dim={self.feature_dim}, level={self.level!r}, "
            f"normalization={self.normalization!r}, methods={self.methods}, class_names={_brief(self.class_names)})"
        )

    def _expected_tensors(self) -> dict[str, Tensor]:
        return shared_shapes(self.methods, self.feature_dim, len(self.class_names))

    def _state(self) -> str:
        return self._fingerprint or f"draft {self._draft_id[:6]}"

    def card(self, repo_id: str | None = None, *, picture: bool = False, subfolder: str = "") -> str:
        """The text of its card.

        Raises:
            DraftSpaceError: the space is a draft.
        """
        values = {
            "feature_dim": str(self.feature_dim),
            "level": self.level,
            "normalization": self.normalization,
            "methods": ", ".join(self.methods) or "none",
            "class_names": listed(self.class_names, shown_as=named_in_words) or "none",
            "space": self.fingerprint,
        }
        return render_card(
            "space",
            values,
            self.tags("space"),
            self.facts,
            repo_id=repo_id,
            picture=picture,
            subfolder=subfolder,
        )


def check_space(space: object) -> None:
    """Refuse what is no space.

    Raises:
        ConfigError: something else than a ``CompatSpace``.
    """
    if not isinstance(space, CompatSpace):
        raise ConfigError(f"space: expected a CompatSpace, got {space!r:.80}; make one: CompatSpace(feature_dim=128)")


def _check_methods(methods: Iterable[str]) -> tuple[str, ...]:
    if not isinstance(methods, Iterable):
        raise ConfigError(f"methods: expected any of {', '.join(method_names())}, got {methods!r}")
    given = [methods] if isinstance(methods, str) else list(methods)
    for method in given:
        _check_choice("methods", method, method_names())
    return tuple(sorted(set(given)))


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigError(f"{field}: expected one of {', '.join(choices)}, got {value!r}")
    return str(value)


def _fingerprint(definition: Mapping[str, Any]) -> str:
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def _check_digest(reference: object) -> str:
    if not isinstance(reference, str) or not reference:
        raise ConfigError(f"reference: expected an extractor's digest(), a string, got {reference!r:.80}")
    return reference


def _str_map(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise TypeError(f"expected strings by name, got {value!r:.80}")
    return dict(value)


def _brief(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."

"""Find components that fit: the server's tags give candidates, each candidate's config.json decides."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from timm_compat.errors import ComponentFileError, ConfigError, HubAccessError, HubNotFoundError
from timm_compat.space import FINGERPRINT_DIGITS, CompatSpace
from timm_compat.storage.facts import Facts
from timm_compat.storage.files import FORMAT, ROLES, ROOT_KEY
from timm_compat.storage.hub_calls import ask
from timm_compat.storage.reading import HubFiles
from timm_compat.storage.source import check_repo_id
from timm_compat.vocabulary import normal_name, printable

DEFAULT_LIMIT = 100


@dataclass(frozen=True)
class Found:
    """A component on the Hub.

    Attributes:
        repo_id: "owner/name".
        commit: the one that was looked at; load with ``revision=`` it to get exactly this.
        role: "extractor", "head", "space" or "model".
        space: fingerprint.
        feature_dim: D of the space.
        architecture: timm's name; None for heads and spaces.
        class_names: of heads and models, in order.
        parameters: number of weights; None where its config does not tell.
        accuracy: first result that it states, in [0, 1]; None without.
        license: as its card states it; None where it states none.
        fused: whether it is a plain timm model.
    """

    repo_id: str
    commit: str
    role: str
    space: str
    feature_dim: int
    architecture: str | None
    class_names: tuple[str, ...]
    parameters: int | None
    accuracy: float | None
    license: str | None
    fused: bool


@dataclass(frozen=True)
class SearchResult(Sequence[Found]):
    """Components that fit, in the server's order.

    Attributes:
        rows: one for each.
        refused: candidates whose tags promised more than their config holds: (repository, reason).
    """

    rows: tuple[Found, ...]
    refused: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Found: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Found]: ...
    def __getitem__(self, index: int | slice) -> Found | Sequence[Found]:
        return self.rows[index]

    def to_markdown(self) -> str:
        """A table."""
        lines = [["repository", "role", "architecture", "D", "classes", "parameters", "accuracy", "licence", "space"]]
        lines.append(["---"] * len(lines[0]))
        lines += [_cells(row) for row in self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join(
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        )


def search(
    space: CompatSpace | str | None = None,
    *,
    role: str | None = None,
    classes: Collection[str] = (),
    dim: int | None = None,
    author: str | None = None,
    limit: int = DEFAULT_LIMIT,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> SearchResult:
    """Components on the Hub that fit.

    Args:
        space: a final space, or its fingerprint.
        role: "extractor", "head", "space" or "model".
        classes: names that a head or model must know.
        dim: feature dimensions.
        author: user or organisation.
        limit: most candidates that are looked at.
        token: None for the one that is logged in; private repositories that it may see are among the results.
        cache_dir: of the Hub's client.

    Raises:
        ConfigError: a role, fingerprint or number that is none.
        DraftSpaceError: the space is a draft.
        HubError: the Hub refuses or fails.
    """
    from huggingface_hub import HfApi

    fingerprint = space.fingerprint if isinstance(space, CompatSpace) else space
    wanted = _tags(fingerprint, role, dim)
    api = HfApi()

    def candidates(token: str | bool | None) -> list[Any]:
        found = api.list_models(filter=wanted, author=author, full=True, cardData=True, limit=limit, token=token)
        return list(itertools.islice(found, limit))

    rows, refused = [], []
    for info in ask("search", candidates, token=token):
        if not set(wanted) <= set(info.tags or ()) or author not in (None, info.id.partition("/")[0]):
            continue  # a server may ignore filters
        try:
            row = _look(info, token, cache_dir)
        except (ComponentFileError, ConfigError, HubNotFoundError, HubAccessError) as error:
            refused.append((info.id, str(error)))
            continue
        reason = _why_not(row, fingerprint, role, classes, dim)
        if reason is None:
            rows.append(row)
        elif reason:
            refused.append((info.id, reason))
    return SearchResult(tuple(rows), tuple(refused))


def _tags(fingerprint: str | None, role: str | None, dim: int | None) -> list[str]:
    if role is not None and role not in ROLES:
        raise ConfigError(f"role: expected one of {', '.join(ROLES)}, got {role!r}")
    if fingerprint is not None and not (
        isinstance(fingerprint, str)
        and len(fingerprint) == FINGERPRINT_DIGITS
        and set(fingerprint) <= set("0123456789abcdef")
    ):
        raise ConfigError(
            f"space: expected a CompatSpace or its fingerprint of {FINGERPRINT_DIGITS} hex digits, got {fingerprint!r}"
        )
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
        raise ConfigError(f"dim: expected a positive whole number, got {dim!r}")
    asked = (("format", FORMAT), ("role", role), ("space", fingerprint), ("dim", dim))
    return ["timm-compat", *(f"timm-compat-{name}:{value}" for name, value in asked if value is not None)]


def _look(info: Any, token: str | bool | None, cache_dir: str | Path | None) -> Found:
    files = HubFiles(check_repo_id(info.id), revision=info.sha, token=token, cache_dir=cache_dir)
    config = files.config()
    ours = config[ROOT_KEY]
    space = CompatSpace.from_config(ours.get("space"))
    facts = Facts.from_config(ours)
    names, parameters = ours.get("class_names", ()), ours.get("parameters")
    return Found(
        repo_id=info.id,
        commit=str(files.commit),
        role=ours["role"],
        space=space.fingerprint,
        feature_dim=space.feature_dim,
        architecture=_architecture(config),
        class_names=tuple(normal_name(str(name)) for name in names) if isinstance(names, list) else (),
        parameters=parameters if isinstance(parameters, int) else None,
        accuracy=facts.results[0].accuracy if facts.results else None,
        license=_license(info) or facts.license,
        fused=ours.get("fused") is True,
    )


def _architecture(config: dict[str, Any]) -> str | None:
    inner = config[ROOT_KEY].get("extractor")
    holder = inner.get("timm", {}) if isinstance(inner, dict) else config
    name = holder.get("architecture") if isinstance(holder, dict) else None
    return name if isinstance(name, str) else None


def _license(info: Any) -> str | None:
    found = [tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")]
    return found[0] if found else None


def _why_not(
    row: Found, fingerprint: str | None, role: str | None, classes: Collection[str], dim: int | None
) -> str | None:
    # None where it fits, "" where it is simply another one, else how its tags contradict its config.
    for name, wanted, held in (
        ("space", fingerprint, row.space),
        ("role", role, row.role),
        ("dim", dim, row.feature_dim),
    ):
        if wanted is not None and wanted != held:
            return f"its tags say {name} {wanted}, its config.json says {held}"
    return None if {normal_name(name) for name in classes} <= set(row.class_names) else ""


def _cells(row: Found) -> list[str]:
    names = ", ".join(row.class_names[:5]) + (" ..." if len(row.class_names) > 5 else "")
    cells = (
        row.repo_id,
        f"{row.role}, fused" if row.fused else row.role,
        row.architecture or "",
        str(row.feature_dim),
        f"{len(row.class_names)}: {names}" if row.class_names else "",
        "" if row.parameters is None else f"{row.parameters:,}",
        "" if row.accuracy is None else f"{row.accuracy:.3f}",
        row.license or "not stated",
        row.space,
    )
    return [printable(cell).replace("|", "\\|") for cell in cells]

"""Find components that fit: the server's tags give candidates, each candidate's config.json decides."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from timm_compat.errors import ComponentFileError, ConfigError, HubAccessError, HubError, HubNotFoundError
from timm_compat.imagenet import listed_words
from timm_compat.space import FINGERPRINT_DIGITS, CompatSpace
from timm_compat.storage.facts import Facts
from timm_compat.storage.files import ROLES, ROOT_KEY, check_format
from timm_compat.storage.hub_calls import ask
from timm_compat.storage.reading import HubFiles
from timm_compat.storage.source import check_repo_id
from timm_compat.table import markdown_table
from timm_compat.vocabulary import normal_name, printable

DEFAULT_LIMIT = 100
BATCH = 64  # candidates between two looks at whether there are enough
PARALLEL = 8  # candidates that are looked at at once
FORMAT_TAG = "timm-compat-format:"
LISTING = "listing"  # in faults: what failed is the list of candidates itself


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
        refused: candidates that are not what their tags promise: (repository, reason).
        faults: candidates that could not be looked at because the Hub failed: (repository, reason); ("listing",
            reason) where the list of candidates itself broke off.
    """

    rows: tuple[Found, ...]
    refused: tuple[tuple[str, str], ...] = ()
    faults: tuple[tuple[str, str], ...] = ()

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
        return markdown_table([*lines, *map(_cells, self.rows)], words=range(len(lines[0])))


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
    """Components on the Hub that fit, of every format that can be read.

    Candidates are listed page by page and looked at several at once, until ``limit`` of them fit or there are no more.

    Args:
        space: a final space, or its fingerprint.
        role: "extractor", "head", "space" or "model".
        classes: names that a head or model must know.
        dim: feature dimensions.
        author: user or organisation.
        limit: most results.
        token: None for the one that is logged in; private repositories that it may see are among the results.
        cache_dir: of the Hub's client.

    Raises:
        ConfigError: a role, fingerprint or number that is none.
        DraftSpaceError: the space is a draft.
        HubError: the Hub refuses or fails before anything was found; later failures are in the result's ``faults``.

    Example:
        >>> for found in tc.search(role="head", classes=["3", "8"]):
        ...     print(found.repo_id, found.class_names[:2])
        alice/digits-head ('0', '1')
    """
    fingerprint = space.fingerprint if isinstance(space, CompatSpace) else space
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"limit: expected a positive integer, got {limit!r}")
    wanted = _tags(fingerprint, role, dim)

    def judge(info: Any) -> "_Judgement | None":
        if not set(wanted) <= set(info.tags or ()) or author not in (None, str(info.id).partition("/")[0]):
            return None  # a server may ignore filters
        try:
            _check_format_tag(info.tags)
            row = _look(info, token, cache_dir)
        except (ComponentFileError, ConfigError, HubNotFoundError, HubAccessError) as error:
            return _Judgement(refused=str(error))
        except HubError as error:
            return _Judgement(fault=str(error))
        reason = _why_not(row, fingerprint, role, classes, dim)
        return _Judgement(row=row) if reason is None else _Judgement(refused=reason) if reason else None

    listing = _Listing(wanted, author, token)
    rows: list[Found] = []
    refused: list[tuple[str, str]] = []
    faults: list[tuple[str, str]] = []
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="timm-compat-search") as pool:
        while len(rows) < limit and (batch := _next_batch(listing, faults)):
            judged = [(str(info.id), one) for info, one in zip(batch, pool.map(judge, batch), strict=True) if one]
            rows += [one.row for _, one in judged if one.row is not None]
            refused += [(repo_id, one.refused) for repo_id, one in judged if one.refused]
            faults += [(repo_id, one.fault) for repo_id, one in judged if one.fault]
            if len(judged) > 1 and all(one.fault for _, one in judged):
                faults.append((LISTING, "none of the last candidates could be looked at: the search ends here"))
                break
    return SearchResult(tuple(rows[:limit]), tuple(refused), tuple(faults))


@dataclass(frozen=True)
class _Judgement:
    """What came of one candidate."""

    row: Found | None = None
    refused: str = ""
    fault: str = ""


class _Listing:
    """The server's candidates, some at a time; after a failure it begins anew and passes over what it gave."""

    def __init__(self, wanted: Sequence[str], author: str | None, token: str | bool | None) -> None:
        self.wanted, self.author, self.token = list(wanted), author, token
        self.given: set[str] = set()
        self._running: Iterator[Any] | None = None

    def next(self) -> list[Any]:
        """Up to ``BATCH`` further ones; none at the end.

        Raises:
            HubError: the Hub refuses or fails.
        """
        return ask("search", self._take, token=self.token)

    def _take(self, token: str | bool | None) -> list[Any]:
        from huggingface_hub import HfApi

        if self._running is None:
            self._running = iter(
                HfApi().list_models(filter=self.wanted, author=self.author, full=True, cardData=True, token=token)
            )
        try:
            fresh = (info for info in self._running if info.id not in self.given)
            taken = list(itertools.islice(fresh, BATCH))
        except BaseException:
            self._running = None  # a generator that failed has ended
            raise
        self.given.update(info.id for info in taken)
        return taken


def _next_batch(listing: _Listing, faults: list[tuple[str, str]]) -> list[Any]:
    try:
        return listing.next()
    except HubError as error:
        if not listing.given:
            raise
        faults.append((LISTING, f"it broke off after {len(listing.given)} candidates: {error}"))
        return []


def _check_format_tag(tags: Sequence[str]) -> None:
    stated = [tag.removeprefix(FORMAT_TAG) for tag in tags if tag.startswith(FORMAT_TAG)]
    for number in stated:
        check_format("its tags", int(number) if number.isascii() and number.isdigit() and len(number) < 9 else number)


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
        raise ConfigError(f"dim: expected a positive integer, got {dim!r}")
    asked = (("role", role), ("space", fingerprint), ("dim", dim))
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
    cells = (
        row.repo_id,
        f"{row.role}, fused" if row.fused else row.role,
        row.architecture or "",
        str(row.feature_dim),
        f"{len(row.class_names):,}: {listed_words(row.class_names)}" if row.class_names else "",
        "" if row.parameters is None else f"{row.parameters:,}",
        "" if row.accuracy is None else f"{row.accuracy:.3f}",
        row.license or "not stated",
        row.space,
    )
    return [printable(cell) for cell in cells]

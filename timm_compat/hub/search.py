"""Find components: the tags in the listing give candidates, the config.json of each one shown decides."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from timm_compat.errors import ComponentFileError, ConfigError, HubAccessError, HubError, HubNotFoundError
from timm_compat.hub.listing import ListedFiles, Listing
from timm_compat.hub.question import ROLE_TAG, SPACE_TAG, Question, checked_question
from timm_compat.imagenet import listed_words
from timm_compat.space import CompatSpace
from timm_compat.storage.component import Component
from timm_compat.storage.facts import Facts
from timm_compat.storage.files import ROLES, ROOT_KEY, check_format
from timm_compat.storage.source import check_repo_id
from timm_compat.table import markdown_table
from timm_compat.vocabulary import normal_name, printable

DEFAULT_LIMIT = 16  # with one request each, and one for the listing, a search stays under 20
MOST_AT_ONCE = 64  # candidates between two looks at whether there are enough
PARALLEL = 8  # candidates that are looked at at once
FORMAT_TAG = "timm-compat-format:"
LISTING = "listing"  # in faults: what failed is the list of candidates itself


@dataclass(frozen=True)
class Found:
    """A component on the Hub.

    Attributes:
        repo_id: "owner/name".
        commit: the one that was read; load with ``revision=commit`` to get exactly this.
        role: "extractor", "head", "space" or "model".
        space: fingerprint.
        feature_dim: D of the space.
        architecture: timm's name; None for heads and spaces.
        class_names: of heads and models, in order.
        parameters: number of weights; None if its config does not say.
        accuracy: the first result that it states, in [0, 1]; None without one.
        license: as stated on its card; None if it states none.
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
    """The components that were found, in the server's order.

    Attributes:
        rows: one per component.
        more: whether there are candidates that were not looked at: raise ``limit``.
        members: in a search for spaces: for every fingerprint that a listed component names, the number of components
            by role, counted by their unchecked tags.
        refused: candidates that are not what their tags promise: (repository, reason).
        faults: candidates that could not be looked at because the Hub failed: (repository, reason); ("listing",
            reason) if the list of candidates itself is incomplete.
    """

    rows: tuple[Found, ...]
    refused: tuple[tuple[str, str], ...] = ()
    faults: tuple[tuple[str, str], ...] = ()
    more: bool = False
    members: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Found: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Found]: ...
    def __getitem__(self, index: int | slice) -> Found | Sequence[Found]:
        return self.rows[index]

    def to_markdown(self) -> str:
        """A table; of a search for spaces one with how many parts each has."""
        if self.members:
            return _spaces_table(self)
        lines = [["repository", "role", "architecture", "D", "classes", "parameters", "accuracy", "licence", "space"]]
        return markdown_table([*lines, *map(_cells, self.rows)], words=range(len(lines[0])))


def search(
    space: CompatSpace | str | None = None,
    *,
    fits: Component | str | Path | None = None,
    role: str | None = None,
    classes: Collection[str] = (),
    dim: int | None = None,
    author: str | None = None,
    limit: int = DEFAULT_LIMIT,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> SearchResult:
    """Find components on the Hub, of every format that can be read.

    Up to 1,000 candidates are listed per request. Of those that are shown, ``config.json`` is downloaded, one request
    each, several at once.

    Args:
        space: a final space, or its fingerprint.
        fits: a component, its folder or its Hub id, instead of a space: for an extractor the heads of its space, for a
            head the extractors, for a model or a space both.
        role: "extractor", "head", "space" or "model"; for spaces, ``members`` says how many components they have.
        classes: names that a head or model must have. Cards list up to 100; for larger heads the config is read.
        dim: feature dimension D.
        author: user or organisation.
        limit: maximum number of results.
        token: None for the one that is logged in; private repositories that it may see are among the results.
        cache_dir: cache folder of the Hub's client.

    Raises:
        ConfigError: a role, fingerprint or number that is none, or a role that cannot fit.
        ComponentFileError: ``fits`` is no component.
        DraftSpaceError: the space is a draft.
        HubError: the Hub refuses or fails before anything was found; later failures are in the result's ``faults``.

    Example:
        >>> for found in tc.search(role="head", classes=["3", "8"]):
        ...     print(found.repo_id, found.class_names[:2])
        alice/digits-head ('0', '1')
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"limit: expected a positive integer, got {limit!r}")
    wanted = checked_question(space, fits, role, classes, dim, author, token, cache_dir)
    counts_parts = wanted.roles == ("space",)
    tags = wanted.tags(any_role=counts_parts)
    listing = Listing(tags, None if counts_parts else author, cards=bool(classes), token=token)
    faults: list[tuple[str, str]] = []
    listed: Iterable[Any] = _until_it_fails(listing, faults)
    if counts_parts:
        listed = list(listed)
    result = _look_at(filter(wanted.accepts, listed), wanted, limit, token, cache_dir)
    members = _count_members(listed) if isinstance(listed, list) else {}
    return replace(result, faults=(*faults, *result.faults), members=members)


@dataclass(frozen=True)
class _Judgement:
    """What came of one candidate."""

    row: Found | None = None
    refused: str = ""
    fault: str = ""


def _look_at(
    candidates: Iterator[Any], wanted: Question, limit: int, token: str | bool | None, cache_dir: str | Path | None
) -> SearchResult:
    # As many as are still missing are looked at in one go, and twice as many each time that too few fit.
    def judge(info: Any) -> _Judgement:
        try:
            _check_format_tag(info)
            row = _look(info, token, cache_dir)
        except (ComponentFileError, ConfigError, HubNotFoundError, HubAccessError) as error:
            return _Judgement(refused=str(error))
        except HubError as error:
            return _Judgement(fault=str(error))
        reason = _why_not(wanted, row)
        return _Judgement(row=row) if reason is None else _Judgement(refused=reason)

    rows: list[Found] = []
    refused: list[tuple[str, str]] = []
    faults: list[tuple[str, str]] = []
    count = limit
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="timm-compat-search") as pool:
        while len(rows) < limit and (batch := list(itertools.islice(candidates, min(count, MOST_AT_ONCE)))):
            judged = [(str(info.id), one) for info, one in zip(batch, pool.map(judge, batch), strict=True)]
            rows += [one.row for _, one in judged if one.row is not None]
            refused += [(repo_id, one.refused) for repo_id, one in judged if one.refused]
            faults += [(repo_id, one.fault) for repo_id, one in judged if one.fault]
            if len(judged) > 1 and all(one.fault for _, one in judged):
                faults.append((LISTING, "none of the last candidates could be looked at: the search ends here"))
                break
            count = max(limit - len(rows), 2 * len(batch))
    more = len(rows) > limit or (len(rows) == limit and next(candidates, None) is not None)
    return SearchResult(tuple(rows[:limit]), tuple(refused), tuple(faults), more)


def _until_it_fails(listing: Listing, faults: list[tuple[str, str]]) -> Iterator[Any]:
    try:
        yield from listing
    except HubError as error:
        if not listing.given:
            raise
        faults.append((LISTING, f"it broke off after {len(listing.given)} candidates: {error}"))


def _count_members(listed: Iterable[Any]) -> dict[str, dict[str, int]]:
    members: dict[str, Counter[str]] = {}
    for info in listed:
        for fingerprint in _stated(info, SPACE_TAG)[:1]:
            members.setdefault(fingerprint, Counter()).update(_stated(info, ROLE_TAG)[:1])
    return {fingerprint: {role: count[role] for role in ROLES} for fingerprint, count in members.items()}


def _stated(info: Any, kind: str) -> list[str]:
    return [tag.removeprefix(kind) for tag in info.tags or () if tag.startswith(kind)]


def _check_format_tag(info: Any) -> None:
    for number in _stated(info, FORMAT_TAG):
        check_format("its tags", int(number) if number.isascii() and number.isdigit() and len(number) < 9 else number)


def _look(info: Any, token: str | bool | None, cache_dir: str | Path | None) -> Found:
    files = ListedFiles(check_repo_id(info.id), revision=info.sha, token=token, cache_dir=cache_dir)
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
    return next(iter(_stated(info, "license:")), None)


def _spaces_table(found: SearchResult) -> str:
    lines = [["space", "D", "extractors", "heads", "models", "repository", "licence"]]
    for row in found.rows:
        counts = found.members.get(row.space, {})
        numbers = [str(counts.get(role, 0)) for role in ("extractor", "head", "model")]
        lines.append([row.space, str(row.feature_dim), *numbers, row.repo_id, printable(row.license or "not stated")])
    return markdown_table(lines, words=(0, 5, 6))


def _why_not(wanted: Question, row: Found) -> str | None:
    # None where it fits, "" where it is simply another one, else how its tags contradict its config.
    asked = {"space": (wanted.space, row.space), "dim": (wanted.dim, row.feature_dim)}
    for name, (expected, held) in asked.items():
        if expected is not None and expected != held:
            return f"its tags say {name} {expected}, its config.json says {held}"
    if wanted.roles and row.role not in wanted.roles:
        return f"its tags say role {' or '.join(wanted.roles)}, its config.json says {row.role}"
    return None if wanted.classes <= set(row.class_names) else ""


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

"""The Hub's listing by our tags, up to 1,000 repositories per request, and small files of listed repositories."""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from timm_compat.errors import ComponentFileError, HubError, OutputWriteError
from timm_compat.storage.files import file_sha256, git_sha1, replaced_file
from timm_compat.storage.hub_calls import ask, time_limit
from timm_compat.storage.reading import HubFiles
from timm_compat.storage.source import COMMIT

BATCH = 64  # repositories that are taken from a page at once
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's SHA-1 of a small file, SHA-256 of a large one


class Listing:
    """The repositories with these tags, in the server's order; pages are turned as they are needed.

    After a failure it begins anew and passes over what it gave.

    Args:
        tags: that a repository must have, all of them.
        author: user or organisation.
        cards: whether the metadata of the cards comes along.
        token: None for the one that is logged in, False for none.

    Raises:
        HubError: the Hub refuses or fails; while it is iterated over.
    """

    def __init__(self, tags: Sequence[str], author: str | None, cards: bool, token: str | bool | None) -> None:
        self.tags, self.author, self.token = list(tags), author, token
        self.properties: list[Any] = ["sha", "tags", *(["cardData"] if cards else [])]
        self.given: set[str] = set()
        self._running: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        while batch := ask("search", self._take, token=self.token):
            yield from batch

    def _take(self, token: str | bool | None) -> list[Any]:
        from huggingface_hub import HfApi

        if self._running is None:
            listed = HfApi().list_models(filter=self.tags, author=self.author, expand=self.properties, token=token)
            self._running = iter(listed)
        try:
            fresh = (info for info in self._running if info.id not in self.given)
            taken = list(itertools.islice(fresh, BATCH))
        except BaseException:
            self._running = None  # a generator that failed has ended
            raise
        self.given.update(info.id for info in taken)
        return taken


class ListedFiles(HubFiles):
    """A component's files at a commit that a listing named: a small one costs one request, and is cached.

    The Hub's client asks twice for a file, and where it does not know the commit or the size, once more.
    """

    def _resolve(self, repo_id: str) -> str:
        return self.revision if COMMIT.fullmatch(self.revision) else super()._resolve(repo_id)

    def _fetch_from_hub(self, name: str, most_bytes: int) -> None:
        from huggingface_hub import hf_hub_url

        if self.offline:
            return super()._fetch_from_hub(name, most_bytes)
        path = self._path(name)
        url = hf_hub_url(self.location, path, revision=self.commit)
        answer = ask(str(self), _get, url, most_bytes, token=self.token)
        if len(answer.data) > most_bytes:
            raise ComponentFileError(f"{self}: {path}: expected at most {most_bytes} bytes, got more")
        if answer.commit not in (None, self.commit):
            raise HubError(f"{self}: asked for {path} at this commit, got it from {answer.commit}; try again")
        if answer.digest is not None:
            own = git_sha1(answer.data) if len(answer.digest) == 40 else file_sha256(answer.data)
            if own != answer.digest:
                raise HubError(f"{self}: {path}: expected the hash {answer.digest}, got {own}: damaged on the way")
        try:
            with replaced_file(self.folder / name) as partial:
                partial.write_bytes(answer.data)
        except OutputWriteError as error:
            raise HubError(
                f"{self}: {path} cannot be cached: {error}; choose another place: HF_HOME, or cache_dir="
            ) from error


class _Answer(NamedTuple):
    data: bytes
    commit: str | None
    digest: str | None


def _get(url: str, most_bytes: int, *, token: str | bool | None) -> _Answer:
    # Not more than the first byte too many is read.
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=time_limit()) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        data = bytearray()
        for part in response.iter_bytes():
            data += part
            if len(data) > most_bytes:
                break
        said = [hop.headers for hop in (*response.history, response)]
    commits = [headers["X-Repo-Commit"] for headers in said if "X-Repo-Commit" in headers]
    digests = [_digest(headers[key]) for headers in said for key in ("X-Linked-Etag", "ETag") if key in headers]
    return _Answer(bytes(data), next(iter(commits), None), next(filter(None, digests), None))


def _digest(etag: str) -> str | None:
    text = etag.removeprefix("W/").strip('"')
    return text if DIGEST.fullmatch(text) else None

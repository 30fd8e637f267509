"""Where components are: how a caller says it, and what a loaded component remembers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from timm_compat.errors import ConfigError

REPO_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
SUBFOLDER = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)  # that is pushed to
LONGEST_SUBFOLDER = 200
COMMIT = re.compile(r"[0-9a-f]{40}")


class Where(TypedDict, total=False):
    """Keywords of every ``from_pretrained`` that say where on the Hub, and how.

    Attributes:
        revision: a branch, tag or commit; "main" if left out.
        token: None for the token that is logged in, False for none, or a token.
        cache_dir: of the Hub's client.
        local_files_only: read the cache, ask nobody.
        subfolder: of the repository or folder.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    subfolder: str


def elsewhere(where: Where, revision: str | None) -> Where:
    """The keywords that say how the Hub is asked, for a revision of another repository."""
    access = where.copy()
    access["revision"] = revision
    access.pop("subfolder", None)
    return access


@dataclass(frozen=True)
class Source:
    """Where a component was loaded from.

    Attributes:
        location: a Hub id or a folder.
        commit: of the Hub repository; None for a folder.
        subfolder: within it.
        sha256: of every weights file, by name.
        pull_request: address of the pull request that a push opened; None otherwise.
    """

    location: str
    commit: str | None
    subfolder: str
    sha256: Mapping[str, str]
    pull_request: str | None = None

    def to_config(self) -> dict[str, Any]:
        """JSON values; a folder's name is nobody else's business and stays out."""
        place = {"repo_id": self.location, "commit": self.commit} if self.commit else {}
        return {**place, **({"subfolder": self.subfolder} if self.subfolder else {}), "sha256": dict(self.sha256)}

    @classmethod
    def from_config(cls, values: Any) -> "Source | None":
        """What ``to_config`` gave of a Hub repository; None where it gave none, or is something else."""
        given = values if isinstance(values, dict) else {}
        repo_id, commit, subfolder = (str(given.get(key, "")) for key in ("repo_id", "commit", "subfolder"))
        hashes = given.get("sha256")
        if not (REPO_ID.fullmatch(repo_id) and COMMIT.fullmatch(commit) and isinstance(hashes, dict)):
            return None
        return cls(repo_id, commit, subfolder, {str(name): str(digest) for name, digest in hashes.items()})

    def __str__(self) -> str:
        place = f"{self.location}/{self.subfolder}" if self.subfolder else self.location
        return f"{place}@{self.commit[:12]}" if self.commit else place


def check_repo_id(repo_id: str) -> str:
    """Refuse what is no "owner/name".

    Raises:
        ConfigError: something else.
    """
    if not isinstance(repo_id, str) or not REPO_ID.fullmatch(repo_id):
        raise ConfigError(f"repo_id: expected a Hub id of the form 'owner/name', got {repo_id!r:.120}")
    return repo_id


def check_subfolder(subfolder: str) -> str:
    """Refuse what is no folder's name, or several with "/" between.

    Raises:
        ConfigError: something else.
    """
    known = isinstance(subfolder, str) and len(subfolder) <= LONGEST_SUBFOLDER and SUBFOLDER.fullmatch(subfolder)
    if subfolder != "" and not known:
        raise ConfigError(
            f"subfolder: expected letters, digits, '.', '_' and '-', such as 'heads/birds', got {subfolder!r:.80}"
        )
    return subfolder

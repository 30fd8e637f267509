"""Where a component is read from: a folder, or one commit of a Hub repository.

A revision is resolved once; every file then comes from that commit, is requested by a name of ours (never one from a
config), has a maximum size before it is downloaded, and is checked before it is used. A file that fails a check is
removed from the cache.
"""

import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from timm_compat.errors import (
    CompatError,
    ComponentFileError,
    ConfigError,
    HubAccessError,
    HubError,
    HubNotFoundError,
)
from timm_compat.storage.files import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    ROOT_KEY,
    Tensors,
    file_sha256,
    git_sha1,
    largest_file,
    read_config,
    read_tensors,
    replace_text,
)
from timm_compat.storage.hub_calls import ask, is_offline, time_limit
from timm_compat.storage.source import COMMIT, REPO_ID, Source, Where

REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./-]{0,254}", re.ASCII)
DEFAULT_REVISION = "main"

_logger = logging.getLogger(__name__)


class Files:
    """A component's files in a folder."""

    commit: str | None = None

    def __init__(self, location: str, folder: Path, subfolder: str = "") -> None:
        self.location, self.folder, self.subfolder = location, folder, subfolder

    def __str__(self) -> str:
        return self.location

    def config(self, role: str | None = None) -> dict[str, Any]:
        """The checked ``config.json``.

        Raises:
            ComponentFileError: it is missing, damaged, or of another role.
            HubError: it cannot be fetched.
        """
        self.fetch(CONFIG_FILE, MAX_CONFIG_BYTES)
        return read_config(self.folder, role)

    def tensors(
        self,
        name: str,
        config: Mapping[str, Any],
        expected: Tensors,
        unbounded: Collection[str] = (),
        convert: bool = False,
    ) -> dict[str, Tensor]:
        """The tensors of one file, as ``files.read_tensors``.

        Raises:
            ComponentFileError: any check fails.
            HubError: the file cannot be fetched.
        """
        self.fetch(name, largest_file(expected))
        try:
            return read_tensors(self.folder, name, config, expected, unbounded, convert)
        except ComponentFileError:
            self.forget(name)
            raise

    def source(self, config: Mapping[str, Any]) -> Source:
        """What the loaded component remembers."""
        return Source(self.location, self.commit, self.subfolder, dict(config[ROOT_KEY]["sha256"]))

    def fetch(self, name: str, most_bytes: int) -> None:
        """Have a file in the folder, if it exists anywhere."""

    def has(self, name: str) -> bool:
        """Whether there is such a file, here or where it would be fetched from."""
        return os.path.isfile(self.folder / name)

    def forget(self, name: str) -> None:
        """A file failed a check: let nobody find it again. A user's folder is left as it is."""


class HubFiles(Files):
    """A component's files at one commit of a Hub repository, in the cache of the Hub's client.

    Raises:
        HubError: the revision cannot be resolved.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
    ) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        self.token = token
        self.offline = local_files_only or is_offline()
        chosen = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()
        with _cache_errors(repo_id):
            self.cache_dir = chosen.resolve()  # caches lie behind links, their names hold "..": one name for each
        self._cache = self.cache_dir / repo_folder_name(repo_id=repo_id, repo_type="model")
        self._listed: dict[str, _Listed] | None = None
        self.revision = DEFAULT_REVISION if revision is None else revision
        with _cache_errors(repo_id):
            self.commit: str = self._resolve(repo_id)
        _logger.info("%s: %s is commit %s%s", repo_id, self.revision, self.commit, " (cache)" if self.offline else "")
        super().__init__(repo_id, self._cache / "snapshots" / self.commit / subfolder, subfolder)

    def fetch(self, name: str, most_bytes: int) -> None:
        """Have a file of this commit in the cache.

        Raises:
            ComponentFileError: the repository has no such file, or it is larger than it may be.
            HubError: it cannot be fetched.
        """
        with _cache_errors(str(self)):
            if not (self.folder / name).is_file():
                self._fetch_from_hub(name, most_bytes)
            if not self.offline:
                self._remember()

    def _fetch_from_hub(self, name: str, most_bytes: int) -> None:
        if self.offline:
            raise HubNotFoundError(
                f"{self}: offline, and the cache does not hold {name}; go online once, or name a commit that it "
                f"holds: {self._held()}"
            )
        path = self._path(name)
        if path not in self._listing():
            raise ComponentFileError(f"{self}: expected the file {path}, found none; is this a component's repository?")
        listed = self._listing()[path]
        size = self._size(path) if listed.size is None else listed.size
        if size > most_bytes:
            raise ComponentFileError(f"{self}: {path}: expected at most {most_bytes} bytes, got {size}")
        self._download(path, replace(listed, size=size))

    def has(self, name: str) -> bool:
        """Whether the cache holds the file, or the repository where it may be asked.

        Raises:
            HubError: the repository cannot be asked.
        """
        return super().has(name) or (not self.offline and self._path(name) in self._listing())

    def forget(self, name: str) -> None:
        """Remove a damaged file from the cache, so that the next attempt fetches it again; offline there is none."""
        if self.offline:
            return
        link = self.folder / name
        try:
            blob = link.resolve()
            link.unlink(missing_ok=True)
            if blob.is_relative_to(self._cache.resolve()):
                blob.unlink(missing_ok=True)
        except OSError as error:  # a cache that others fill: what is wrong with the file is told all the same
            _logger.warning("%s: the damaged %s stays in the cache: %s", self, name, error)

    def __str__(self) -> str:
        return f"{self.location}@{self.commit[:12]}"

    def _resolve(self, repo_id: str) -> str:
        if COMMIT.fullmatch(self.revision) and (self._cache / "snapshots" / self.revision).is_dir():
            return self.revision  # a commit never changes
        if self.offline:
            return self._cached_commit(repo_id)
        info = self._info(repo_id, self.revision)
        if not COMMIT.fullmatch(info.sha or ""):
            raise HubError(
                f"{repo_id} at {self.revision}: expected a commit from the Hub, got {info.sha!r}; is it a Hub?"
            )
        self._listed = _listing(info)
        return str(info.sha)

    def _info(self, repo_id: str, revision: str) -> Any:
        from huggingface_hub import HfApi

        return ask(
            f"{repo_id} at {revision}",
            HfApi().model_info,
            repo_id,
            revision=revision,
            files_metadata=True,
            timeout=time_limit(),
            token=self.token,
        )

    def _cached_commit(self, repo_id: str) -> str:
        ref = self._cache / "refs" / self.revision
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""
        if COMMIT.fullmatch(commit) and (self._cache / "snapshots" / commit).is_dir():
            return commit
        raise HubNotFoundError(
            f"{repo_id}: offline, and the cache at {str(self.cache_dir)!r} holds no revision {self.revision!r} of it "
            f"(held: {self._held()}); go online once, or pass revision= one of those"
        )

    def _held(self) -> str:
        snapshots = self._cache / "snapshots"
        return ", ".join(sorted(path.name for path in snapshots.iterdir())) if snapshots.is_dir() else "none"

    def _path(self, name: str) -> str:
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def _listing(self) -> dict[str, "_Listed"]:
        if self._listed is None:
            self._listed = _listing(self._info(self.location, self.commit))
        return self._listed

    def _size(self, path: str) -> int:
        # Some mirrors list files without their sizes.
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.location, path, revision=self.commit)
        size = ask(str(self), get_hf_file_metadata, url, timeout=time_limit(), token=self.token).size
        if size is None:
            raise HubError(f"{self}: {path}: expected its size from the Hub, got none; ask another one (HF_ENDPOINT)")
        return size

    def _download(self, path: str, listed: "_Listed") -> None:
        from huggingface_hub import hf_hub_download

        found = ask(
            str(self),
            hf_hub_download,
            self.location,
            path,
            revision=self.commit,
            cache_dir=self.cache_dir,
            etag_timeout=time_limit(),
            token=self.token,
            num_bytes=listed.size or 0,
        )
        if Path(found).parent.resolve() != self.folder.resolve():
            raise HubError(f"{self}: asked for {path} at this commit, got it from {Path(found).parent.name}; try again")
        problem = listed.differs(Path(found))
        if problem:
            self.forget(Path(path).name)
            raise ComponentFileError(f"{self}: {path}: {problem}: damaged on the way; fetch it again")

    def _remember(self) -> None:
        # So that the same revision is found offline; the client itself does it only for downloads by revision.
        ref = self._cache / "refs" / self.revision
        if self.revision == self.commit or (ref.is_file() and ref.read_text(encoding="utf-8") == self.commit):
            return
        try:
            ref.parent.mkdir(parents=True, exist_ok=True)
            replace_text(ref, self.commit)
        except OSError as error:  # a cache that others fill; everything asked for is there
            _logger.info("%s: %s is not remembered for offline use: %s", self, self.revision, error)


@dataclass(frozen=True)
class _Listed:
    """What the Hub says about a file; a mirror may know less."""

    size: int | None
    sha256: str | None
    git_sha1: str | None

    def differs(self, file: Path) -> str | None:
        """How a file differs; None if it does not."""
        if file.stat().st_size != self.size:
            return f"expected {self.size} bytes, got {file.stat().st_size}"
        if self.sha256 is not None:
            return _unlike("SHA-256", self.sha256, file_sha256(file))
        return None if self.git_sha1 is None else _unlike("git's SHA-1", self.git_sha1, git_sha1(file))


def _unlike(name: str, expected: str, actual: str) -> str | None:
    return None if expected == actual else f"expected {name} {expected}, got {actual}"


def _listing(info: Any) -> dict[str, _Listed]:
    return {
        file.rfilename: _Listed(file.size, getattr(file.lfs, "sha256", None), getattr(file, "blob_id", None))
        for file in info.siblings or ()
    }


@contextmanager
def _cache_errors(subject: str) -> Iterator[None]:
    try:
        yield
    except CompatError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, up to Python 3.12
        raise HubError(
            f"{subject}: the Hub's cache cannot be read ({error}); check its rights, or choose another place: HF_HOME, "
            "or cache_dir="
        ) from error


def open_files(
    location: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
) -> Files:
    """A folder's files where there is such a folder, else those of the Hub repository "owner/name".

    Raises:
        ConfigError: a revision for a folder, or a revision or subfolder that is none.
        HubError: the revision cannot be resolved.
    """
    _check_subfolder(subfolder)
    if isinstance(location, Path) or not REPO_ID.fullmatch(location) or os.path.exists(location):
        if revision is not None:
            raise ConfigError(f"revision: expected none for the folder {str(location)!r}, got {revision!r}; drop it")
        return Files(str(location), Path(location) / subfolder, subfolder)
    if revision is not None and not (isinstance(revision, str) and REVISION.fullmatch(revision)):
        raise ConfigError(f"revision: expected a branch, a tag or a commit, got {revision!r:.80}")
    try:
        return HubFiles(
            location,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            subfolder=subfolder,
        )
    except (HubNotFoundError, HubAccessError) as error:  # a mistyped folder looks like a Hub id
        raise type(error)(f"{error}; nor is there a folder {location!r}") from error.__cause__


def pinned(where: Where, files: Files) -> Where:
    """The same keywords for the commit that was resolved, so that nothing else is loaded than what was looked at."""
    fixed = where.copy()
    if files.commit is not None:
        fixed["revision"] = files.commit
    return fixed


def cached_commit(repo_id: str, name: str, revision: str | None = None) -> str | None:
    """The commit at which the cache of the Hub's client holds a file; None where it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, name, revision=revision)
    commit = Path(found).parent.name if isinstance(found, str) else ""
    return commit if COMMIT.fullmatch(commit) else None


def _check_subfolder(subfolder: str) -> None:
    parts = PurePosixPath(subfolder)
    if parts.is_absolute() or ".." in parts.parts or "\\" in subfolder:
        raise ConfigError(f"subfolder: expected a relative path without '..', got {subfolder!r:.80}")

"""A repository before a push, and whether a push went through whose answer was lost."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from timm_compat.errors import (
    ConfigError,
    HubAccessError,
    HubConnectionError,
    HubError,
    HubNotFoundError,
    HubTimeoutError,
)
from timm_compat.storage.files import (
    CARD_FILE,
    CONFIG_FILE,
    KNOWN_FILES,
    MAX_CONFIG_BYTES,
    ROOT_KEY,
    file_sha256,
    git_sha1,
    parse_json,
)
from timm_compat.storage.hub_calls import ask, time_limit

# What a repository holds that its owner has just made on the website.
FRESH_FILES = frozenset({CARD_FILE, ".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt"})


class Repository:
    """A model repository, or one subfolder of it, that is to be pushed to.

    ``sizes`` holds all its files by their paths in the repository; the methods take names within the subfolder.
    """

    def __init__(self, repo_id: str, revision: str | None, token: str | bool | None, subfolder: str = "") -> None:
        self.repo_id, self.revision, self.token, self.subfolder = repo_id, revision, token, subfolder
        self.commit = ""
        self.sizes: dict[str, int] = {}

    def __str__(self) -> str:
        return f"{self.repo_id}/{self.subfolder}" if self.subfolder else self.repo_id

    def path(self, name: str) -> str:
        """A file's path in the repository."""
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def prepare(self, private: bool | None, make_branch: bool) -> None:
        """Have repository and branch, and know what they hold.

        Raises:
            ConfigError: it is public where a private one was asked for, or the other way round.
            HubError: the Hub refuses or fails.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        try:
            info = self._info(None)
        except (HubNotFoundError, HubAccessError):  # it is not there, or only its owner sees it: who may make it?
            ask(self.repo_id, api.create_repo, self.repo_id, private=private, exist_ok=True, token=self.token)
            info = self._info(None)
        if private is not None and bool(info.private) != private:
            state = ("public", "private") if private else ("private", "public")
            raise ConfigError(
                f"{self.repo_id}: exists and is {state[0]}, private={private} asks for a {state[1]} one; change it "
                "in its settings, or choose another name"
            )
        if make_branch:
            ask(self.repo_id, api.create_branch, self.repo_id, branch=self.revision, exist_ok=True, token=self.token)
            info = self._info(self.revision)
        self.commit = str(info.sha)
        self.sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def check_content(self, role: str, force: bool) -> dict[str, Any] | None:
        """Refuse to replace what is something else: a repository's root, or a subfolder, holds one component.

        Args:
            role: of the component that is to be pushed.
            force: replace it nevertheless.

        Returns:
            Our part of the ``config.json`` that is there; None without.

        Raises:
            ConfigError: the place holds another component, or files of somebody else's.
        """
        theirs = self._our_config()
        self._check_no_file_is_in_the_way()
        foreign = self._foreign()
        if force or not foreign or (theirs or {}).get("role") == role:
            return theirs
        holds = f"a component of role {theirs.get('role')!r:.20}" if theirs else f"something else ({foreign[0]:.80})"
        raise ConfigError(
            f"{self}: holds {holds} already; push the {role} to a place of its own, another repository or "
            "another subfolder, or replace what is there: force=True (--force)"
        )

    def read(self, name: str, most_bytes: int) -> bytes | None:
        """A small file; None where there is none, or a larger one."""
        from huggingface_hub import hf_hub_download

        size = self.sizes.get(self.path(name))
        if size is None or size > most_bytes:
            return None
        path = ask(self.repo_id, hf_hub_download, self.repo_id, self.path(name), revision=self.commit, token=self.token)
        return Path(path).read_bytes()

    def commit_after(self, error: HubError, content: Mapping[str, bytes | Path]) -> str:
        """The commit of a push whose answer got lost: the repository holds the content now.

        Args:
            error: in which the push ended.
            content: what was pushed, by name.

        Raises:
            HubError: of the error's kind: the content is not there, or the Hub cannot be asked; the message says which.
        """
        if not isinstance(error, (HubConnectionError, HubTimeoutError)):
            raise error
        try:
            info = self._info(self.revision)
        except HubError as second:
            raise type(error)(
                f"{error}; the Hub cannot be asked what arrived ({second}): look at {self.repo_id} before you push "
                "again"
            ) from error
        held = {file.rfilename: file for file in info.siblings or ()}
        sent = {self.path(name): data for name, data in content.items()}
        if all(path in held and _is_same(held[path], data) for path, data in sent.items()):
            return str(info.sha)
        state = "nothing was changed there so far" if info.sha == self.commit else f"it is at commit {info.sha} now"
        raise type(error)(
            f"{error}; {self.repo_id}: {state}, but what is on its way may still arrive: look there "
            "before you push again"
        ) from error

    def _foreign(self) -> list[str]:
        # Components in subfolders are no reason not to push one to the root.
        if self.subfolder:
            within = {path for path in self.sizes if path.startswith(f"{self.subfolder}/")}
            return sorted(within - {self.path(CARD_FILE)})
        folders = {path.removesuffix(CONFIG_FILE) for path in self.sizes if path.endswith(f"/{CONFIG_FILE}")}
        others = {f"{folder}{name}" for folder in folders for name in KNOWN_FILES}
        return sorted(self.sizes.keys() - FRESH_FILES - others)

    def _check_no_file_is_in_the_way(self) -> None:
        for folder in (PurePosixPath(self.subfolder), *PurePosixPath(self.subfolder).parents):
            if str(folder) in self.sizes:
                raise ConfigError(f"subfolder: expected a folder, got {folder}, a file of {self.repo_id}; rename one")

    def _our_config(self) -> dict[str, Any] | None:
        data = self.read(CONFIG_FILE, MAX_CONFIG_BYTES)
        try:
            config = None if data is None else parse_json(data)
        except ValueError:
            return None
        ours = config.get(ROOT_KEY) if isinstance(config, dict) else None
        return ours if isinstance(ours, dict) else None

    def _info(self, revision: str | None) -> Any:
        from huggingface_hub import HfApi

        return ask(
            self.repo_id,
            HfApi().model_info,
            self.repo_id,
            revision=revision,
            files_metadata=True,
            timeout=time_limit(),
            token=self.token,
        )


def _is_same(listed: Any, data: bytes | Path) -> bool:
    recorded = getattr(listed.lfs, "sha256", None)
    return bool(git_sha1(data) == listed.blob_id if recorded is None else file_sha256(data) == recorded)

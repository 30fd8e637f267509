"""A repository as it is before a push, and what became of one whose answer got lost."""

from collections.abc import Mapping
from pathlib import Path
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
    """A model repository that is to be pushed to."""

    def __init__(self, repo_id: str, revision: str | None, token: str | bool | None) -> None:
        self.repo_id, self.revision, self.token = repo_id, revision, token
        self.commit = ""
        self.sizes: dict[str, int] = {}

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
        """Refuse to replace what is something else: a repository holds one component.

        Args:
            role: of the component that is to be pushed.
            force: replace it nevertheless.

        Returns:
            Our part of the ``config.json`` that is there; None without.

        Raises:
            ConfigError: the repository holds another component, or files of somebody else's.
        """
        theirs = self._our_config()
        foreign = sorted(self.sizes.keys() - FRESH_FILES)
        if force or not foreign or (theirs or {}).get("role") == role:
            return theirs
        holds = f"a component of role {theirs.get('role')!r:.20}" if theirs else f"something else ({foreign[0]:.80})"
        raise ConfigError(
            f"{self.repo_id}: holds {holds} already; push the {role} to a repository of its own, or replace what is "
            "there: force=True (--force)"
        )

    def read(self, name: str, most_bytes: int) -> bytes | None:
        """A small file; None where there is none, or a larger one."""
        from huggingface_hub import hf_hub_download

        size = self.sizes.get(name)
        if size is None or size > most_bytes:
            return None
        path = ask(self.repo_id, hf_hub_download, self.repo_id, name, revision=self.commit, token=self.token)
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
        if all(name in held and _is_same(held[name], data) for name, data in content.items()):
            return str(info.sha)
        state = "nothing was changed there so far" if info.sha == self.commit else f"it is at commit {info.sha} now"
        raise type(error)(
            f"{error}; {self.repo_id}: {state}, but what is on its way may still arrive: look there "
            "before you push again"
        ) from error

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

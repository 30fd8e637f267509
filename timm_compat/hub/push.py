"""Publish a component: one commit for everything, unchanged files not sent again, people's words on cards kept."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_compat._extras import require
from timm_compat.errors import ConfigError, HubAccessError, HubNotFoundError, MissingExtraError
from timm_compat.evaluation.plots import CELL_INCHES, MARGIN_INCHES, heat_map
from timm_compat.storage.card_merge import merge_cards
from timm_compat.storage.component import Component, set_pusher
from timm_compat.storage.files import (
    CARD_FILE,
    CONFIG_FILE,
    KNOWN_FILES,
    MAX_CARD_BYTES,
    MAX_CONFIG_BYTES,
    PICTURE_FILE,
    ROOT_KEY,
    read_config,
)
from timm_compat.storage.hub_calls import ask, time_limit
from timm_compat.storage.source import Source, check_repo_id


def push(
    component: Component, repo_id: str, *, overwrite_card: bool = False, settings: Mapping[str, Any], **options: Any
) -> Source:
    """Publish a component; see ``Component.push_to_hub``.

    Raises:
        ConfigError: the id is none, or the repository holds something else.
        HubError: the Hub refuses or fails.
    """
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="timm-compat-push-") as scratch:
        folder = component.save_pretrained(Path(scratch) / "component", **settings)
        picture = draw_matrix(component.facts.matrix, folder / PICTURE_FILE)
        card = component.card(repo_id, picture=picture, **settings)
        return push_folder(folder, repo_id, card, overwrite_card=overwrite_card, **options)


def push_folder(
    folder: Path,
    repo_id: str,
    card: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
    overwrite_card: bool = False,
) -> Source:
    """Publish a component's folder with this card; see ``Component.push_to_hub``.

    Raises:
        ComponentFileError: the folder holds no component.
        ConfigError: the id is none, or the repository holds something else.
        HubError: the Hub refuses or fails.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    ours = read_config(folder)[ROOT_KEY]
    target = _Target(check_repo_id(repo_id), revision, token)
    target.prepare(private, make_branch=revision is not None and not create_pr)
    target.check_role(ours["role"])
    content: dict[str, bytes | Path] = {name: folder / name for name in KNOWN_FILES if (folder / name).is_file()}
    old = None if overwrite_card else target.read(CARD_FILE, MAX_CARD_BYTES)
    content[CARD_FILE] = (card if old is None else merge_cards(old, card)).encode()
    operations: list[Any] = [CommitOperationAdd(name, data) for name, data in sorted(content.items())]
    operations += [CommitOperationDelete(name) for name in KNOWN_FILES if name in target.sizes and name not in content]
    commit = ask(
        repo_id,
        HfApi().create_commit,
        repo_id,
        operations,
        commit_message=commit_message or f"Upload {ours['role']} with timm-compat",
        revision=revision,
        create_pr=create_pr,
        parent_commit=None if create_pr else target.commit,
        token=token,
        num_bytes=sum(path.stat().st_size for path in content.values() if isinstance(path, Path)),
    )
    return Source(repo_id, commit.oid, "", ours["sha256"])


def draw_matrix(matrix: Mapping[str, Any] | None, file: Path) -> bool:
    """Draw a recombination matrix (``to_dict()``) to a file; False without a matrix or without Matplotlib."""
    if matrix is None:
        return False
    try:
        figures = require("matplotlib.figure", "plots")
    except MissingExtraError:
        return False
    import numpy as np

    values = np.array([[np.nan if cell is None else cell for cell in row] for row in matrix["accuracy"]], dtype=float)
    width, height = len(matrix["columns"]), len(matrix["rows"])
    size = (MARGIN_INCHES + CELL_INCHES * width, MARGIN_INCHES * 0.7 + CELL_INCHES * 0.8 * height)
    figure = figures.Figure(figsize=size, layout="constrained")
    native = np.array(matrix["native"]) if matrix.get("native") is not None else None
    heat_map(values, matrix["rows"], matrix["columns"], native=native, ax=figure.subplots())
    figure.savefig(file, dpi=120)
    return True


class _Target:
    """The repository as it is before the push."""

    def __init__(self, repo_id: str, revision: str | None, token: str | bool | None) -> None:
        self.repo_id, self.revision, self.token = repo_id, revision, token
        self.commit = ""
        self.sizes: dict[str, int] = {}

    def prepare(self, private: bool | None, make_branch: bool) -> None:
        """Have repository and branch, and know what they hold."""
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

    def check_role(self, role: str) -> None:
        """Refuse to replace what is something else: a repository holds one component."""
        text = self.read(CONFIG_FILE, MAX_CONFIG_BYTES)
        if text is None:
            return
        try:
            theirs = json.loads(text).get(ROOT_KEY, {}).get("role")
        except (ValueError, AttributeError):
            theirs = None
        if theirs != role:
            kind = f"a component of role {theirs!r}" if theirs else "something else than a component"
            raise ConfigError(f"{self.repo_id}: holds {kind} already; push the {role} to a repository of its own")

    def read(self, name: str, most_bytes: int) -> str | None:
        """The text of a small file; None where there is none."""
        from huggingface_hub import hf_hub_download

        size = self.sizes.get(name)
        if size is None or size > most_bytes:
            return None
        path = ask(self.repo_id, hf_hub_download, self.repo_id, name, revision=self.commit, token=self.token)
        return Path(path).read_text(encoding="utf-8", errors="replace")

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


set_pusher(push)

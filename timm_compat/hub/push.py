"""Publish a component: one commit for everything, unchanged files are not sent again, edited cards keep their text."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm_compat._extras import require
from timm_compat.errors import ComponentFileError, HubError, MissingExtraError
from timm_compat.evaluation.plots import CELL_INCHES, MARGIN_INCHES, heat_map
from timm_compat.hub.fused import fused_card, read_fused
from timm_compat.hub.repository import Repository
from timm_compat.storage.card_merge import merge_cards
from timm_compat.storage.component import Component, set_pusher
from timm_compat.storage.files import (
    CARD_FILE,
    CONFIG_FILE,
    KNOWN_FILES,
    MAX_CARD_BYTES,
    PICTURE_FILE,
    ROOT_KEY,
    read_config,
    to_json,
)
from timm_compat.storage.hub_calls import ask
from timm_compat.storage.source import Source, check_repo_id, check_subfolder

SCRATCH = "timm-compat-push-"
SCRATCH_SECONDS = 60  # a younger one may be about to be locked


def push(
    component: Component,
    repo_id: str,
    *,
    subfolder: str = "",
    overwrite_card: bool = False,
    settings: Mapping[str, Any],
    **options: Any,
) -> Source:
    """Publish a component; see ``Component.push_to_hub``.

    Raises:
        ConfigError: the id is none, or the repository holds something else.
        HubError: the Hub refuses or fails.
    """
    check_repo_id(repo_id)
    check_subfolder(subfolder)
    with _scratch_folder() as scratch:
        folder = component.save_pretrained(scratch / "component", **settings)
        picture = draw_matrix(component.facts.matrix, folder / PICTURE_FILE)
        card = component.card(repo_id, picture=picture, subfolder=subfolder, **settings)
        return push_folder(folder, repo_id, card, subfolder=subfolder, overwrite_card=overwrite_card, **options)


def push_fused(
    folder: Path, repo_id: str, *, subfolder: str = "", license_id: str | None = None, **options: Any
) -> Source:
    """Publish the folder of a fused model, as ``save_pretrained(..., fused=True)`` wrote it, under a new card.

    What a person wrote on the folder's card goes along.

    Args:
        folder: the model's.
        repo_id: "owner/name".
        subfolder: of the repository.
        license_id: an id that the Hub knows; the one that the folder states if None.
        **options: as ``push_folder``.

    Raises:
        ComponentFileError: the folder holds no fused model, or links.
        ConfigError: the id is none, or the repository holds something else.
        HubError: the Hub refuses or fails.
    """
    config = read_fused(folder)
    if license_id is not None:
        config[ROOT_KEY]["license"] = license_id
    picture = _plain_file(folder, PICTURE_FILE) is not None
    card = fused_card(config, check_repo_id(repo_id), picture=picture, subfolder=check_subfolder(subfolder))
    own = _plain_file(folder, CARD_FILE)
    if own is not None:
        card = merge_cards(_text(own), card, config[ROOT_KEY])
    return push_folder(folder, repo_id, card, subfolder=subfolder, config=config, **options)


def push_folder(
    folder: Path,
    repo_id: str,
    card: str,
    *,
    subfolder: str = "",
    config: Mapping[str, Any] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
    overwrite_card: bool = False,
    force: bool = False,
) -> Source:
    """Publish a component's folder with this card; see ``Component.push_to_hub``.

    Args:
        folder: the component's; links in it are not followed.
        repo_id: "owner/name".
        card: text of ``README.md``.
        config: stands for the folder's ``config.json`` if given.
        subfolder, private, revision, create_pr, token, commit_message, overwrite_card, force: as
            ``Component.push_to_hub``.

    Raises:
        ComponentFileError: the folder holds no component, or links.
        ConfigError: the id is none, or the repository holds something else.
        HubError: the Hub refuses or fails.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = {name: _plain_file(folder, name) for name in KNOWN_FILES}
    ours = (config or read_config(folder))[ROOT_KEY]
    target = Repository(check_repo_id(repo_id), revision, token, check_subfolder(subfolder))
    target.prepare(private, make_branch=revision is not None and not create_pr)
    before = target.check_content(ours["role"], force)
    content: dict[str, bytes | Path] = {name: file for name, file in files.items() if file is not None}
    old = None if overwrite_card else target.read(CARD_FILE, MAX_CARD_BYTES)
    content[CARD_FILE] = (
        card if old is None else merge_cards(old.decode("utf-8", errors="replace"), card, before)
    ).encode()
    if config is not None:
        content[CONFIG_FILE] = to_json(config).encode()
    gone = [target.path(name) for name in KNOWN_FILES if target.path(name) in target.sizes and name not in content]
    operations: list[Any] = [CommitOperationAdd(target.path(name), data) for name, data in sorted(content.items())]
    operations += map(CommitOperationDelete, gone)
    try:
        answer = ask(
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
            repeatable=False,
        )
    except HubError as error:
        return Source(repo_id, target.commit_after(error, content), subfolder, ours["sha256"])
    return Source(repo_id, answer.oid, subfolder, ours["sha256"], answer.pr_url)


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


def _plain_file(folder: Path, name: str) -> Path | None:
    # A link would publish what lies somewhere else on this machine.
    file = folder / name
    if file.is_symlink():
        raise ComponentFileError(
            f"{file}: expected a plain file, got a link; copy the folder's content (cp -rL) and push"
        )
    return file if file.is_file() else None


def _text(card: Path) -> str:
    if card.stat().st_size > MAX_CARD_BYTES:
        raise ComponentFileError(f"{card}: expected at most {MAX_CARD_BYTES} bytes, got {card.stat().st_size}")
    return card.read_text(encoding="utf-8", errors="replace")


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    # Weights for the time of a push. What a process that was killed left behind is removed by the next one, which
    # sees from the lock that nobody uses it.
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with _locked(left) as is_free:
            if is_free and time.time() - left.stat().st_mtime > SCRATCH_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch, _locked(Path(scratch)):
        yield Path(scratch)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    # Whether the folder's lock could be had.
    descriptor = _lock(folder)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # somebody else's
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use
        os.close(descriptor)
        return None
    return descriptor


set_pusher(push)

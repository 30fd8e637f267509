"""The base of a thin extractor: weights that stay in the repository where they are, named by commit and hash."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timm_compat.errors import ComponentFileError, HubError
from timm_compat.storage.files import WEIGHTS_FILE, file_sha256
from timm_compat.storage.reading import HubFiles
from timm_compat.storage.source import COMMIT, REPO_ID, Where, elsewhere

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Base:
    """One safetensors file of a Hub repository.

    Attributes:
        repo_id: "owner/name".
        commit: of the repository.
        sha256: of its ``model.safetensors``; no other file can be a base.
    """

    repo_id: str
    commit: str
    sha256: str

    def to_config(self) -> dict[str, str]:
        """JSON values."""
        return {**asdict(self), "file": WEIGHTS_FILE}

    @classmethod
    def from_config(cls, values: Any) -> "Base":
        """What ``to_config`` gave.

        Raises:
            ComponentFileError: something else.
        """
        given = values if isinstance(values, dict) else {}
        forms = (("repo_id", REPO_ID), ("commit", COMMIT), ("sha256", SHA256), ("file", re.compile(WEIGHTS_FILE)))
        for key, form in forms:
            if not isinstance(given.get(key), str) or not form.fullmatch(given[key]):
                raise ComponentFileError(
                    f"config.json: base: expected {key} of a {WEIGHTS_FILE} on the Hub, got {given.get(key)!r:.80}"
                )
        return cls(given["repo_id"], given["commit"], given["sha256"])

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.commit[:12]}"


def resolve_base(repo_id: str, commit: str | None, most_bytes: int, where: Where) -> tuple[Base, Path]:
    """A repository's weights as a base, and where they are on disk; fetched where the cache does not hold them.

    Args:
        repo_id: "owner/name".
        commit: of it; that of "main" if None.
        most_bytes: of the file.
        where: ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        ComponentFileError: the repository holds no ``model.safetensors``, or a larger one.
        HubError: it cannot be fetched.
    """
    files = _fetched(repo_id, commit, most_bytes, where)
    path = files.folder / WEIGHTS_FILE
    return Base(repo_id, files.commit, file_sha256(path)), path


def base_file(base: Base, file: str | Path | None, most_bytes: int, where: Where) -> Path:
    """A base's weights on disk, with the hash that they must have.

    Args:
        base: as the thin component names it.
        file: on disk already, or None to fetch it at its commit.
        most_bytes: of the file.
        where: ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        ComponentFileError: another file than that.
        HubError: it cannot be fetched.
    """
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise ComponentFileError(f"base: expected the weights of {base}, found no file at {str(path)!r}")
        _check_hash(base, path, "give the file of that commit, or none to fetch it")
        return path
    try:
        files = _fetched(base.repo_id, base.commit, most_bytes, where)
    except HubError as error:
        raise type(error)(
            f"{error}; this thin extractor needs the weights of its base {base}: give them with base=FILE if you have "
            "them on disk"
        ) from error
    path = files.folder / WEIGHTS_FILE
    try:
        _check_hash(base, path, "the base is damaged or was exchanged: fetch it again, or give base=FILE")
    except ComponentFileError:
        files.forget(WEIGHTS_FILE)
        raise
    return path


def _fetched(repo_id: str, commit: str | None, most_bytes: int, where: Where) -> HubFiles:
    files = HubFiles(repo_id, **elsewhere(where, commit))
    files.fetch(WEIGHTS_FILE, most_bytes)
    return files


def _check_hash(base: Base, path: Path, way_out: str) -> None:
    found = file_sha256(path)
    if found != base.sha256:
        raise ComponentFileError(f"{path}: expected SHA-256 {base.sha256} of the base {base}, got {found}; {way_out}")

"""What the tests' Hub remembers: users, repositories with their commits, branches and tags, and the files' bytes."""

import copy
import functools
import hashlib
import itertools
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

LFS_ENDINGS = (".safetensors", ".bin", ".png")


@dataclass(frozen=True)
class User:
    """Who a token belongs to."""

    name: str
    orgs: tuple[str, ...] = ()
    may_write: bool = True

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.orgs)


@dataclass(frozen=True)
class Commit:
    """One state of a repository: SHA-256 of every file by path."""

    oid: str
    files: dict[str, str]
    parent: str | None
    title: str


@dataclass
class Repo:
    """A model repository."""

    repo_id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.branches["main"] = self.add({}, None, "initial commit").oid

    def add(self, files: dict[str, str], parent: str | None, title: str) -> Commit:
        text = f"{self.repo_id} {len(self.commits)} {sorted(files.items())} {parent} {title}"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), files, parent, title)
        self.commits[commit.oid] = commit
        return commit

    def find(self, revision: str) -> Commit | None:
        name = "main" if revision == "HEAD" else revision
        oid = self.branches.get(name) or self.tags.get(revision) or revision
        return self.commits.get(oid)


class Store:
    """Everything the Hub holds; several servers may share one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users: dict[str, User] = {}
        self.blobs: dict[str, bytes] = {}
        self.lfs: set[str] = set()
        self.upload_mode = "lfs"
        self.takes_pull_requests = False
        self.counter = itertools.count()

    def copy(self, repo_id: str, copies: Iterable[str]) -> None:
        """The same commits under other names."""
        for name in copies:
            twin = copy.copy(self.repos[repo_id])
            twin.repo_id, twin.commits, twin.branches = name, dict(twin.commits), dict(twin.branches)
            self.repos[name] = twin

    def put(self, content: bytes) -> str:
        key = hashlib.sha256(content).hexdigest()
        self.blobs[key] = content
        return key

    def is_lfs(self, path: str) -> bool:
        return self.upload_mode == "lfs" and path.endswith(LFS_ENDINGS)

    def oid(self, key: str) -> str:
        """The id by which clients tell that a file is unchanged: SHA-256 of an LFS file, git's SHA-1 of others."""
        content = self.blobs[key]
        return key if key in self.lfs else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def file_info(self, path: str, key: str) -> dict[str, Any]:
        size = len(self.blobs[key])
        info: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid(key), "size": size}
        if key in self.lfs:
            info["lfs"] = {"oid": key, "sha256": key, "size": size, "pointerSize": 134}
        return info

    def metadata(self, commit: Commit) -> dict[str, Any]:
        """Front matter of the card."""
        return _front_matter(self.blobs[commit.files["README.md"]].decode()) if "README.md" in commit.files else {}

    def tags(self, commit: Commit) -> list[str]:
        """What the Hub derives from a card for its search."""
        front = self.metadata(commit)
        tags = [str(tag) for tag in front.get("tags") or []]
        tags += [str(front[key]) for key in ("library_name", "pipeline_tag") if key in front]
        for key, prefix in (("license", "license"), ("datasets", "dataset"), ("base_model", "base_model")):
            values = front.get(key) or []
            tags += [f"{prefix}:{value}" for value in ([values] if isinstance(values, str) else values)]
        return list(dict.fromkeys(tags))

    def model_info(self, repo: Repo, commit: Commit) -> dict[str, Any]:
        front = self.metadata(commit)
        files = [self.file_info(path, key) for path, key in sorted(commit.files.items())]
        siblings = [
            {"rfilename": f["path"], "size": f["size"], "blobId": f["oid"], **({"lfs": f["lfs"]} if "lfs" in f else {})}
            for f in files
        ]
        return {
            "_id": hashlib.sha1(repo.repo_id.encode()).hexdigest()[:24],
            "id": repo.repo_id,
            "modelId": repo.repo_id,
            "author": repo.repo_id.split("/")[0],
            "sha": commit.oid,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": self.tags(commit),
            "pipeline_tag": front.get("pipeline_tag"),
            "library_name": front.get("library_name"),
            "createdAt": "2026-01-01T00:00:00.000Z",
            "lastModified": "2026-01-01T00:00:00.000Z",
            "cardData": front,
            "siblings": siblings,
        }


@functools.cache
def _front_matter(card: str) -> dict[str, Any]:
    parts = card.split("---\n", 2)
    front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else {}
    return front if isinstance(front, dict) else {}

"""A Hub on 127.0.0.1 for tests: real HTTP for the real clients, with faults on request. No test reaches any other."""

import base64
import json
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from hub_store import Commit, Repo, Store, User

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
PAGE = 2  # models a page, so that clients have to turn pages
REAL_PAGE = 1000  # what the real Hub gives at most, and where nothing is asked for


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD /path" holds a match of ``pattern``.

    Kinds: "status" (``value`` is the code), "hang" (seconds), "truncate", "flip" (one bit), "junk" (a page),
    "commit" (``value`` is what X-Repo-Commit says), "redirect" (``value`` is another origin), "echo" (an error that
    repeats the token), "drop" (the connection, without an answer), "lost" (the same once the work is done), "late"
    (that again after seconds), "breakdown" (no call succeeds from here on), "slow" (seconds before a sound answer),
    "drip" (a byte, then ``value`` seconds, and so on), "sizeless" (files are listed without their sizes). ``headers``
    and ``code`` (X-Error-Code) go with a "status".
    """

    pattern: str
    kind: str
    value: Any = None
    times: int = 10**6
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    token: str | None
    size: int


class HubError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str | None, message: str, **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


class DroppedError(Exception):
    """No answer at all."""


class LoopbackHub:
    """The server; ``url`` is its origin."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = Store() if store is None else store
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.page = PAGE
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        self.store.clear()
        self.faults.clear()
        self.seen.clear()
        self.page = PAGE

    def fail(self, pattern: str, kind: str, value: Any = None, times: int = 10**6, **more: Any) -> None:
        self.faults.append(Fault(pattern, kind, value, times, **more))

    def fault(self, request: str) -> Fault | None:
        with self.store.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def user(self, token: str, name: str, *orgs: str, may_write: bool = True) -> str:
        """Register a user; returns the token."""
        self.store.users[token] = User(name, orgs, may_write)
        return token

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Bytes of a repository's files."""
        commit = self.store.repos[repo_id].find(revision)
        assert commit is not None
        return {path: self.store.blobs[key] for path, key in commit.files.items()}

    def edit(self, repo_id: str, **files: bytes | None) -> str:
        """Commit files by name ("__" stands for a dot); None deletes one. Returns the commit."""
        repo = self.store.repos[repo_id]
        head = repo.commits[repo.branches["main"]]
        content = dict(head.files)
        for name, data in files.items():
            path = name.replace("__", ".")
            content.pop(path, None)
            if data is not None:
                content[path] = self.store.put(data)
                if self.store.is_lfs(path):
                    self.store.lfs.add(content[path])
        repo.branches["main"] = repo.add(content, head.oid, "edited by hand").oid
        return repo.branches["main"]


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    # One request

    def _handle(self) -> None:
        self.body = self._read_body()
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query, keep_blank_values=True)
        header = self.headers.get("Authorization") or ""
        self.token = header.removeprefix("Bearer ") or None
        self.hub.seen.append(Seen(self.command, self.path, self.token, len(self.body)))
        self.fault = self.hub.fault(f"{self.command} {self.path}")
        try:
            self._fail_early(parts.path)
            method, path = "GET" if self.command == "HEAD" else self.command, parts.path
            for verb, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, path)
                if verb == method and match:
                    with self.hub.store.lock:
                        reply = answer(self, **{key: unquote(value or "") for key, value in match.groupdict().items()})
                    kind = self.fault.kind if self.fault else None
                    if kind == "late":
                        self.hub.closing.wait(self.fault.value)
                    if kind == "breakdown":
                        self.hub.fail("", "status", 503)
                    return self._drop() if kind in ("lost", "late", "breakdown") else reply()
            raise HubError(404, None, f"no such endpoint: {method} {path}")
        except DroppedError:
            return self._drop()
        except HubError as error:
            extra = {"X-Error-Message": error.message.replace("\n", " ")}
            extra |= self.fault.headers if self.fault else {}
            if error.code:
                extra["X-Error-Code"] = error.code
            self._send(error.status, json.dumps({"error": error.message, **error.body}).encode(), extra)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _drip(self, content: bytes) -> None:
        assert self.fault is not None
        with suppress(ConnectionError):  # whoever has lost patience
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.hub.closing.wait(self.fault.value):
                    break
        self.close_connection = True

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _fail_early(self, path: str) -> None:
        if self.fault is None:
            return
        if self.fault.kind == "hang":
            self.hub.closing.wait(self.fault.value)
            self.close_connection = True
            raise HubError(504, None, "hung")
        if self.fault.kind == "slow":
            self.hub.closing.wait(self.fault.value)
        if self.fault.kind == "drop":
            raise DroppedError
        if self.fault.kind == "status":
            raise HubError(self.fault.value, self.fault.code, "a fault that the test asked for")
        if self.fault.kind == "echo":
            raise HubError(500, None, f"do not repeat {self.token}")

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        if self.fault and self.fault.kind == "junk":
            content = b"<html>a captive portal</html>"
        length = len(content)
        kind = self.fault.kind if self.fault and self.command == "GET" else None
        if kind == "flip" and length:
            middle = length // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if kind == "drip":
            self._drip(content)
        elif self.command != "HEAD":
            self.wfile.write(content[: length // 2] if kind == "truncate" else content)
        self.wfile.flush()
        if kind == "truncate":
            self.close_connection = True

    def _json(self, value: Any, status: int = 200, **headers: str) -> Callable[[], None]:
        return lambda: self._send(
            status, json.dumps(value).encode(), {k.replace("_", "-"): v for k, v in headers.items()}
        )

    # Who asks, and for what

    def _user(self) -> User | None:
        user = self.hub.store.users.get(self.token or "")
        if self.token and user is None:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return user

    def _repo(self, repo_id: str, write: bool = False) -> Repo:
        user, repo = self._user(), self.hub.store.repos.get(repo_id)
        if repo is None or (repo.private and not (user and user.owns(repo_id))):
            status = 401 if user is None else 404
            raise HubError(status, "RepoNotFound", "Repository not found")
        if write and user is None:
            raise HubError(401, None, "Invalid username or password.")
        if write and not (user and user.may_write and user.owns(repo_id)):
            raise HubError(403, None, "You don't have the required permissions: this token has no write role here")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Endpoints

    def whoami(self) -> Callable[[], None]:
        user = self._user()
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        orgs = [{"name": org, "type": "org"} for org in user.orgs]
        return self._json({"type": "user", "name": user.name, "orgs": orgs, "auth": {"type": "access_token"}})

    def create(self) -> Callable[[], None]:
        asked, user = json.loads(self.body), self._user()
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        repo_id = f"{asked.get('organization') or user.name}/{asked['name']}"
        url = f"{self.hub.url}/{repo_id}"
        if not (user.may_write and user.owns(repo_id)):
            raise HubError(403, None, "You don't have the rights to create a model under this namespace")
        if repo_id in self.hub.store.repos:
            raise HubError(409, None, "You already created this model repo", url=url)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.store.repos[repo_id] = Repo(repo_id, private)
        return self._json({"url": url, "name": repo_id, "id": repo_id})

    def delete(self) -> Callable[[], None]:
        asked, user = json.loads(self.body), self._user()
        repo_id = f"{asked.get('organization') or (user.name if user else '')}/{asked['name']}"
        self._repo(repo_id, write=True)
        del self.hub.store.repos[repo_id]
        return self._json({})

    def validate_yaml(self) -> Callable[[], None]:
        return self._json({"errors": [], "warnings": []})

    def list_models(self) -> Callable[[], None]:
        user = self._user()
        found = []
        for repo in self.hub.store.repos.values():
            if repo.private and not (user and user.owns(repo.repo_id)):
                continue
            info = self.hub.store.model_info(repo, repo.commits[repo.branches["main"]])
            if self._fits(info):
                found.append(info)
        start, limit = int(self.query.get("cursor", ["0"])[0]), int(self.query.get("limit", ["1000"])[0])
        end = start + min(self.hub.page, limit)
        headers = {}
        if end < len(found):
            again = urlencode({**self.query, "cursor": [str(end)], "limit": [str(limit)]}, doseq=True)
            headers["Link"] = f'<{self.hub.url}/api/models?{again}>; rel="next"'
        return self._json([self._expanded(info) for info in found[start:end]], **headers)

    def _expanded(self, info: dict[str, Any]) -> dict[str, Any]:
        wanted = self.query.get("expand")
        return {key: info[key] for key in ("_id", "id", "modelId", *wanted)} if wanted else info

    def _fits(self, info: dict[str, Any]) -> bool:
        tags = set(self.query.get("filter", []))
        author, word = self.query.get("author", [None])[0], self.query.get("search", [""])[0]
        return tags <= set(info["tags"]) and author in (None, info["author"]) and word.lower() in info["id"].lower()

    def info(self, repo: str, revision: str = "main") -> Callable[[], None]:
        found = self._repo(repo)
        told = self.hub.store.model_info(found, self._commit(found, revision))
        if self.fault and self.fault.kind == "sizeless":
            told["siblings"] = [{"rfilename": file["rfilename"]} for file in told["siblings"]]
        return self._json(told)

    def tree(self, repo: str, revision: str, folder: str = "") -> Callable[[], None]:
        commit = self._commit(self._repo(repo), revision)
        under = f"{folder}/" if folder else ""
        files = [self.hub.store.file_info(p, key) for p, key in sorted(commit.files.items()) if p.startswith(under)]
        return self._json(files)

    def paths_info(self, repo: str, revision: str) -> Callable[[], None]:
        commit = self._commit(self._repo(repo), revision)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = parse_qs(self.body.decode()).get("paths", [])
        return self._json([self.hub.store.file_info(p, commit.files[p]) for p in wanted if p in commit.files])

    def refs(self, repo: str) -> Callable[[], None]:
        found = self._repo(repo)
        listed = {
            kind: [{"name": name, "ref": f"refs/{path}/{name}", "targetCommit": oid} for name, oid in refs.items()]
            for kind, path, refs in (("branches", "heads", found.branches), ("tags", "tags", found.tags))
        }
        return self._json({**listed, "converts": [], "pullRequests": []})

    def commits(self, repo: str, revision: str) -> Callable[[], None]:
        found = self._repo(repo)
        commit: Commit | None = self._commit(found, revision)
        listed = []
        while commit is not None:
            listed.append(
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": "",
                    "authors": [],
                    "date": "2026-01-01T00:00:00.000Z",
                }
            )
            commit = found.commits.get(commit.parent or "")
        return self._json(listed)

    def make_branch(self, repo: str, name: str) -> Callable[[], None]:
        found = self._repo(repo, write=True)
        if name in found.branches:
            raise HubError(409, None, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        found.branches[name] = self._commit(found, start).oid
        return self._json({})

    def drop_branch(self, repo: str, name: str) -> Callable[[], None]:
        del self._repo(repo, write=True).branches[name]
        return self._json({})

    def make_tag(self, repo: str, revision: str) -> Callable[[], None]:
        found = self._repo(repo, write=True)
        found.tags[json.loads(self.body)["tag"]] = self._commit(found, revision).oid
        return self._json({})

    def preupload(self, repo: str, revision: str) -> Callable[[], None]:
        found = self._repo(repo, write=True)
        self._refuse_pull_request()
        commit, store = self._commit(found, revision), self.hub.store
        answer = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            entry = {"path": path, "uploadMode": "lfs" if store.is_lfs(path) else "regular", "shouldIgnore": False}
            if path in commit.files:
                entry["oid"] = store.oid(commit.files[path])
            answer.append(entry)
        return self._json({"files": answer, "commitOid": commit.oid})

    def _refuse_pull_request(self) -> None:
        if self.query.get("create_pr") == ["1"] and not self.hub.store.takes_pull_requests:
            raise HubError(403, None, "Pull requests are disabled on this repository")

    def lfs_batch(self, repo: str) -> Callable[[], None]:
        self._repo(repo, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.store.blobs:
                href = f"{self.hub.url}/lfs-upload/{item['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{self.hub.url}/lfs-verify"}}
            objects.append(entry)
        return self._json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, sha: str) -> Callable[[], None]:
        if self.hub.store.put(self.body) != sha:
            raise HubError(400, None, "the content has another SHA-256")
        return self._json({})

    def lfs_verify(self) -> Callable[[], None]:
        asked = json.loads(self.body)
        if len(self.hub.store.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(404, None, "no such object")
        return self._json({})

    def make_commit(self, repo: str, revision: str) -> Callable[[], None]:
        found = self._repo(repo, write=True)
        self._refuse_pull_request()
        head, store = self._commit(found, revision), self.hub.store
        if revision not in found.branches:
            raise HubError(400, None, "commits go to a branch")
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        files, title = dict(head.files), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, head.oid):
                    raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
            elif line["key"] == "file":
                files[value["path"]] = store.put(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in store.blobs:
                    raise HubError(400, None, "the LFS object was not uploaded")
                files[value["path"]] = value["oid"]
                store.lfs.add(value["oid"])
            else:
                under = value["path"]
                files = {path: key for path, key in files.items() if path != under and not path.startswith(f"{under}/")}
        commit = found.add(files, head.oid, title)
        answer = {"success": True, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit.oid}", "commitOid": commit.oid}
        if self.query.get("create_pr") == ["1"]:
            number = 1 + sum(name.startswith("refs/pr/") for name in found.branches)
            found.branches[f"refs/pr/{number}"] = commit.oid
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{number}"
        else:
            found.branches[revision] = commit.oid
        return self._json({**answer, "hookOutput": ""})

    def resolve(self, repo: str, revision: str, file: str) -> Callable[[], None]:
        found = self._repo(repo)
        if found.gated and self._user() is None:
            raise HubError(403, "GatedRepo", f"Access to model {repo} is restricted. You must be authenticated")
        commit = self._commit(found, revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if self.fault and self.fault.kind == "commit":
            headers["X-Repo-Commit"] = self.fault.value
        if file not in commit.files:
            raise HubError(404, "EntryNotFound", "Entry not found")
        key, store = commit.files[file], self.hub.store
        size = str(len(store.blobs[key]))
        if key in store.lfs:
            headers |= {"X-Linked-Etag": f'"{key}"', "X-Linked-Size": size}
            if self.fault and self.fault.kind == "redirect":
                headers["Location"] = f"{self.fault.value}/cdn/{key}"
                return lambda: self._send(302, b"", headers)
        return self._content(store.blobs[key], {**headers, "ETag": f'"{store.oid(key)}"'})

    def cdn(self, sha: str) -> Callable[[], None]:
        return self._content(self.hub.store.blobs[sha], {"ETag": f'"{sha}"', "Accept-Ranges": "bytes"})

    def _content(self, content: bytes, headers: dict[str, str]) -> Callable[[], None]:
        headers = {"Content-Type": "application/octet-stream", **headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return lambda: self._send(200, content, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return lambda: self._send(206, content[first : last + 1], headers)


API = f"/api/models/{REPO}"
ROUTES: list[tuple[str, str, Callable[..., Callable[[], None]]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("DELETE", "/api/repos/delete", _Handler.delete),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", "/api/models", _Handler.list_models),
    ("GET", API, _Handler.info),
    ("GET", f"{API}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", f"{API}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", _Handler.tree),
    ("POST", f"{API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET", f"{API}/refs", _Handler.refs),
    ("GET", f"{API}/commits/(?P<revision>[^/]+)", _Handler.commits),
    ("POST", f"{API}/branch/(?P<name>[^/]+)", _Handler.make_branch),
    ("DELETE", f"{API}/branch/(?P<name>[^/]+)", _Handler.drop_branch),
    ("POST", f"{API}/tag/(?P<revision>[^/]+)", _Handler.make_tag),
    ("POST", f"{API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", f"{API}/commit/(?P<revision>[^/]+)", _Handler.make_commit),
    ("POST", r"/(?P<repo>[\w.-]+/[\w.-]+?)(\.git)?/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/lfs-upload/(?P<sha>[0-9a-f]{64})", _Handler.lfs_upload),
    ("POST", "/lfs-verify", _Handler.lfs_verify),
    ("GET", f"/{REPO}/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
    ("GET", "/cdn/(?P<sha>[0-9a-f]{64})", _Handler.cdn),
]

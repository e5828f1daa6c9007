"""A model hub on the loopback interface: what the hub's own client needs to list, describe and download models, over real HTTP.

It answers in the hub's forms: pages of a listing linked by header, `expand`, commits in headers, an ETag for each file, error
codes in headers. The client is the real huggingface_hub, told of it by HF_ENDPOINT (`Hub.environment`).
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

_PAGE = 2
"""Models on a page of a listing, so that every listing of more has several."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A model's files at one commit."""

    sha: str
    """40 hex digits."""
    files: Mapping[str, bytes]
    """By their path."""


@dataclass(slots=True)
class Repository:
    """A model on the hub."""

    name: str
    """Its owner and its name."""
    facts: dict[str, Any]
    """What the API says of it besides its files, in the API's names: `gated`, `safetensors`, `cardData`, `tags`."""
    commits: list[Commit]
    """The oldest first; the last is what `main` means."""

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.sha == revision), None)


@dataclass
class Hub:
    """The running hub."""

    port: int
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path of every request, in order."""
    failing: int | None = None
    """The status that every answer has; None for answers in earnest."""
    before: Callable[[str], None] = lambda _: None
    """Called with each request's path before it is answered; may block."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables with which the hub's client finds this one and nothing else."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def publish(self, name: str, directory: Path, **facts: Any) -> str:
        """Commit a directory's files to a model, which is made where there is none; returns the commit."""
        files = {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}
        earlier = self.repositories.get(name)
        number = len(earlier.commits) if earlier else 0
        sha = hashlib.sha1(repr((name, number, sorted(files.items()))).encode(), usedforsecurity=False).hexdigest()
        commits = [*(earlier.commits if earlier else []), Commit(sha, files)]
        known = {"gated": False, "disabled": False, "tags": [], **(earlier.facts if earlier else {}), **facts}
        self.repositories[name] = Repository(name, known, commits)
        return sha

    def downloads(self) -> list[str]:
        """Paths of the files that were fetched."""
        return [path for method, path in map(str.split, self.requests) if method == "GET" and "/resolve/" in path]


@contextlib.contextmanager
def run_hub() -> Iterator[Hub]:
    """Keep a hub that has no models yet."""
    hub = Hub(0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:  # the test says what it wants to know
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {path.replace(' ', '')}")
        self.hub.before(path)
        if self.hub.failing is not None:
            self._send(self.hub.failing, b"no")
            return
        parts = path.strip("/").split("/")
        match parts:
            case ["api", "models"]:
                self._list(query)
            case ["api", "models", owner, name]:
                self._describe(f"{owner}/{name}", "main", query)
            case ["api", "models", owner, name, "revision", revision]:
                self._describe(f"{owner}/{name}", revision, query)
            case ["api", "models", owner, name, "tree", revision]:
                self._tree(f"{owner}/{name}", revision)
            case [owner, name, "resolve", revision, file]:
                self._file(f"{owner}/{name}", revision, file)
            case _:
                self._send(404, b"")

    def _list(self, query: dict[str, list[str]]) -> None:
        author, search = query.get("author", [""])[0], query.get("search", [""])[0].lower()
        names = sorted(name for name in self.hub.repositories if name.startswith(f"{author}/") and search in name.lower())
        first = int(query.get("cursor", ["0"])[0])
        shown = [self._facts(self.hub.repositories[name], "main", query) for name in names[first : first + _PAGE]]
        headers = {}
        if first + _PAGE < len(names):
            following = urlencode({**query, "cursor": first + _PAGE}, doseq=True)
            headers["Link"] = f'<{self.hub.endpoint}/api/models?{following}>; rel="next"'
        self._json(shown, headers)

    def _describe(self, name: str, revision: str, query: dict[str, list[str]]) -> None:
        repository = self._found(name, revision)
        if repository:
            self._json(self._facts(repository, revision, query))

    def _facts(self, repository: Repository, revision: str, query: dict[str, list[str]]) -> dict[str, Any]:
        commit = repository.at(revision)
        assert commit is not None
        files = [{"rfilename": name} for name in commit.files]
        facts = {**repository.facts, "sha": commit.sha, "siblings": files, "private": False}
        wanted = query.get("expand")
        shown = facts if wanted is None else {name: value for name, value in facts.items() if name in wanted}
        return {"id": repository.name, "modelId": repository.name, **shown}

    def _tree(self, name: str, revision: str) -> None:
        repository = self._found(name, revision)
        if repository:
            commit = repository.at(revision)
            assert commit is not None
            self._json(
                [{"type": "file", "path": path, "size": len(data), "oid": _etag(data)} for path, data in commit.files.items()]
            )

    def _file(self, name: str, revision: str, file: str) -> None:
        repository = self._found(name, revision)
        if not repository:
            return
        commit = repository.at(revision)
        assert commit is not None
        if repository.facts["gated"]:
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {name} is restricted."})
        elif file not in commit.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.sha})
        else:
            data = commit.files[file]
            self._send(200, data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit.sha})

    def _found(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif repository.at(revision) is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
        else:
            return repository
        return None

    def _json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client may be killed while it waits
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()

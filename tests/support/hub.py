"""A stand-in for the Hugging Face Hub on the loopback: the part of its protocol by which a snapshot is fetched.

As the Hub does, it lists a commit's tree, answers HEAD and GET for a file with ETag and X-Repo-Commit, sends large
files (weights) through a redirect to its store, and says in X-Error-Code what is unknown.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

LARGE = (".safetensors", ".bin")  # kept outside of Git, as the Hub's repositories do
ROUTES = {
    "info": r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)",
    "tree": r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/?]+)",
    "resolve": r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)",
    "store": r"/store/(?P<digest>[0-9a-f]{64})",
}
Repos = dict[str, dict[str, Path]]  # by id and commit, a folder of files


class Hub(ThreadingHTTPServer):
    """Serves repositories; ``asked`` has every request, ``HEAD /…``, in order."""

    daemon_threads = True

    def __init__(self, repos: Repos):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.asked = repos, []
        paths = [path for commits in repos.values() for folder in commits.values() for path in folder.iterdir()]
        self.store = {sha256(path): path for path in paths if path.suffix in LARGE}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        for route, pattern in ROUTES.items():
            if match := re.fullmatch(pattern, self.path.partition("?")[0]):
                return getattr(self, route)(**match.groupdict())
        return self.answer(404)

    do_HEAD = do_GET

    def info(self, repo: str, revision: str) -> None:
        if folder := self.folder(repo, revision):
            siblings = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            self.answer_json({"id": repo, "sha": revision, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        if folder := self.folder(repo, revision):
            self.answer_json([describe(path) for path in sorted(folder.iterdir())])

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if not (folder := self.folder(repo, revision)):
            return
        path, commit = folder / name, {"X-Repo-Commit": revision}
        if not path.is_file():
            self.answer(404, {"X-Error-Code": "EntryNotFound", **commit})
        elif path.suffix in LARGE:
            digest = sha256(path)
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(path.stat().st_size)}
            store = f"http://localhost:{self.server.server_port}"  # another host, as the Hub's own store is
            self.answer(302, {"Location": f"{store}/store/{digest}", **linked, **commit})
        else:
            self.answer(200, {"ETag": f'"{blob_id(path)}"', **commit}, path.read_bytes())

    def store(self, digest: str) -> None:
        self.answer(200, {"ETag": f'"{digest}"'}, self.server.store[digest].read_bytes())

    def folder(self, repo: str, revision: str) -> Path | None:
        """A commit's files; where there are none, says so to the client."""
        if repo not in self.server.repos:  # 401, because it might be private
            self.answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in self.server.repos[repo]:
            message = f"Invalid rev id: {revision}"
            self.answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": message})
        return self.server.repos.get(repo, {}).get(revision)

    def answer_json(self, content: object) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Tests read ``asked`` instead."""


def describe(path: Path) -> dict:
    """A file's line in a tree."""
    size = path.stat().st_size
    large = {"lfs": {"oid": sha256(path), "size": size, "pointerSize": 134}} if path.suffix in LARGE else {}
    return {"type": "file", "path": path.name, "oid": blob_id(path), "size": size, **large}


def blob_id(path: Path) -> str:
    """Git's name for a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def serve(repos: Repos) -> Iterator[Hub]:
    """Serve repositories until the block ends."""
    with Hub(repos) as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()

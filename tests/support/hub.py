"""A stand-in for the Hugging Face Hub on the loopback: the parts of its protocol by which snapshots come and go.

As the Hub does, it lists a commit's tree, answers HEAD and GET for a file with ETag and X-Repo-Commit, sends large
files (weights) through a redirect to its store, and says in X-Error-Code what is unknown. It takes commits from the
owners of tokens: looks at a card's head, says which files are large, has those put into its store, and makes a commit
of what it is told, whole or not at all. A Space's id is ``spaces/user/name``, a data set's ``datasets/user/name``.
"""

import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote

from tools.publish.metadata import metadata_errors, read_metadata

LARGE = (".safetensors", ".bin", ".parquet")  # kept outside of Git, as the Hub's repositories do
API, REPO, REVISION = r"/api/(?P<kind>models|spaces|datasets)", r"/(?P<repo>[^/]+/[^/]+)", r"/(?P<revision>[^/?]+)"
ROUTES = {
    "info": rf"{API}{REPO}(/revision{REVISION})?",
    "tree": rf"{API}{REPO}/tree{REVISION}(/(?P<below>.+))?",
    "paths_info": rf"{API}{REPO}/paths-info{REVISION}",
    "resolve": rf"(?P<kind>/spaces|/datasets|){REPO}/resolve{REVISION}/(?P<name>.+)",
    "store": r"/store/(?P<digest>[0-9a-f]{64})",
    "create": r"/api/repos/create",
    "validate": r"/api/validate-yaml",
    "preupload": rf"{API}{REPO}/preupload{REVISION}",
    "batch": r"(?P<kind>/spaces|)/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "commit": rf"{API}{REPO}/commit{REVISION}",
}
METHODS = {"store": ("GET", "HEAD", "PUT")} | dict.fromkeys(("info", "tree", "resolve"), ("GET", "HEAD"))
KINDS = ("spaces", "datasets")  # of repositories, beside models
Repos = dict[str, dict[str, Path]]  # by id and commit, a folder of files


class Hub(ThreadingHTTPServer):
    """Serves repositories; ``asked`` has every request, ``HEAD /…``, in order, ``sent`` the bytes of all answers.

    heads: each repository's newest commit, which is ``main``. tokens: whose name each stands for. broken: the status
    that a route answers instead of doing its work, 0 where it hangs up.
    """

    daemon_threads = True

    def __init__(self, repos: Repos, tokens: dict[str, str], folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.tokens, self.folder = repos, tokens, folder
        self.asked: list[str] = []
        self.sent = 0
        self.broken: dict[str, int] = {}
        self.messages: dict[str, str] = {}  # by commit
        self.heads = {repo: list(commits)[-1] for repo, commits in repos.items() if commits}
        paths = [path for commits in repos.values() for folder in commits.values() for path in files(folder).values()]
        self.store = {sha256(path): path for path in paths if path.suffix in LARGE}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo: str, contents: dict[str, bytes], message: str) -> str:
        """Make a commit that holds these files; returns its id."""
        told = json.dumps([self.heads.get(repo), message, sorted(contents)]).encode()
        commit = hashlib.sha1(told + b"".join(contents[name] for name in sorted(contents))).hexdigest()
        for name, data in contents.items():
            path = self.folder / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.repos.setdefault(repo, {})[commit] = self.folder / commit
        self.heads[repo], self.messages[commit] = commit, message
        return commit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def answer_request(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for route, pattern in ROUTES.items():
            match = re.fullmatch(pattern, self.path.partition("?")[0])
            if match and self.command in METHODS.get(route, ("POST",)):
                if status := self.server.broken.get(route):
                    return self.answer(status)
                if status == 0:
                    self.close_connection = True
                    return None
                given = match.groupdict()
                if "repo" in given:
                    given["repo"] = "".join(f"{kind}/" for kind in KINDS if kind in given["kind"]) + given["repo"]
                    del given["kind"]
                return getattr(self, route)(**given)
        return self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = answer_request

    def info(self, repo: str, revision: str | None) -> None:
        if folder := self.commit_folder(repo, revision or "main"):
            siblings = [{"rfilename": name} for name in files(folder)]
            readme = folder / "README.md"
            card = {"cardData": read_metadata(readme.read_text())} if readme.exists() else {}
            sha = self.commit_of(repo, revision or "main")
            name = "/".join(repo.split("/")[-2:])
            self.answer_json({"id": name, "sha": sha, "siblings": siblings} | card)

    def tree(self, repo: str, revision: str, below: str | None) -> None:
        """All files below a folder, or what lies in it; the latter with its folders."""
        if not (folder := self.commit_folder(repo, revision)):
            return
        start = folder / unquote(below or "")
        if not start.is_dir():
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        deep = "recursive=true" in self.path.lower()
        inside = start.rglob("*") if deep else start.iterdir()
        names = [path.relative_to(folder).as_posix() for path in sorted(inside)]
        return self.answer_json([describe(name, folder / name) for name in names])

    def paths_info(self, repo: str, revision: str) -> None:
        if folder := self.commit_folder(repo, revision):
            asked = parse_qs(self.body.decode())
            names = asked.get("paths") or json.loads(self.body)["paths"]
            there = [name.strip("/") for name in names if (folder / name.strip("/")).exists()]
            self.answer_json([describe(name, folder / name) for name in there])

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if not (folder := self.commit_folder(repo, revision)):
            return
        path, commit = folder / unquote(name), {"X-Repo-Commit": self.commit_of(repo, revision)}
        if not path.is_file():
            self.answer(404, {"X-Error-Code": "EntryNotFound", **commit})
        elif path.suffix in LARGE:
            digest = sha256(path)
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(path.stat().st_size)}
            store = f"http://localhost:{self.server.server_port}"  # another host, as the Hub's own store is
            self.answer(302, {"Location": f"{store}/store/{digest}", **linked, **commit})
        else:
            self.answer_part({"ETag": f'"{blob_id(path)}"', **commit}, path)

    def store(self, digest: str) -> None:
        if self.command != "PUT":
            return self.answer_part({"ETag": f'"{digest}"'}, self.server.store[digest])
        if hashlib.sha256(self.body).hexdigest() != digest:
            return self.answer(400)
        self.server.store[digest] = self.server.folder / digest
        self.server.store[digest].write_bytes(self.body)
        return self.answer(200)

    def create(self) -> None:
        """A repository with the one file that the Hub itself puts there."""
        asked = json.loads(self.body)
        repo, kind = f"{asked['organization']}/{asked['name']}", asked.get("type", "model")
        repo = f"spaces/{repo}" if kind == "space" else repo
        if self.may_write(repo):
            exists = repo in self.server.repos
            if not exists:
                self.server.add(repo, {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
            self.answer_json({"url": f"{self.server.url}/{repo}"}, 409 if exists else 200)

    def validate(self) -> None:
        asked = json.loads(self.body)
        wrong = metadata_errors(asked["content"], asked["repoType"])
        if "text/plain" in self.headers["Accept"]:
            return self.answer(400 if wrong else 200, {"Content-Type": "text/plain"}, "\n".join(wrong).encode())
        return self.answer_json(
            {"errors": [{"message": line} for line in wrong], "warnings": []}, 400 if wrong else 200
        )

    def preupload(self, repo: str, revision: str) -> None:
        if self.may_write(repo) and (folder := self.commit_folder(repo, revision)):
            there = files(folder)
            self.answer_json({"files": [plan(file["path"], there) for file in json.loads(self.body)["files"]]})

    def batch(self, repo: str) -> None:
        if self.may_write(repo):
            objects = json.loads(self.body)["objects"]
            for item in objects:
                if item["oid"] not in self.server.store:
                    item["actions"] = {"upload": {"href": f"{self.server.url}/store/{item['oid']}"}}
            self.answer_json({"transfer": "basic", "objects": objects})

    def commit(self, repo: str, revision: str) -> None:
        if not (self.may_write(repo) and (folder := self.commit_folder(repo, revision))):
            return
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", self.server.heads[repo]) != self.server.heads[repo]:
            return self.answer(412)
        contents = {name: path.read_bytes() for name, path in files(folder).items()}
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    contents[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    contents[value["path"]] = self.server.store[value["oid"]].read_bytes()
                case "deletedFile":
                    del contents[value["path"]]
        commit = self.server.add(repo, contents, header["value"]["summary"])
        url = f"{self.server.url}/{repo}/commit/{commit}"
        return self.answer_json({"success": True, "commitUrl": url, "commitOid": commit})

    def may_write(self, repo: str) -> bool:
        """Whether the request's token is that of the repository's owner; where not, says so to the client."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.server.tokens:
            self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif self.server.tokens[token] != repo.removeprefix("spaces/").partition("/")[0]:
            self.answer(403, {"X-Error-Message": "You don't have the rights to create a model under this namespace"})
        else:
            return True
        return False

    def commit_of(self, repo: str, revision: str) -> str:
        return self.server.heads[repo] if revision == "main" else revision

    def commit_folder(self, repo: str, revision: str) -> Path | None:
        """A commit's files; where there are none, says so to the client."""
        if repo not in self.server.repos:  # 401, because it might be private
            self.answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        commit = self.commit_of(repo, revision)
        if commit not in self.server.repos[repo]:
            message = f"Invalid rev id: {revision}"
            self.answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": message})
        return self.server.repos[repo].get(commit)

    def answer_part(self, headers: dict[str, str], path: Path) -> None:
        """Send a file, or the bytes of it that are asked for."""
        content = path.read_bytes()
        if not (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            return self.answer(200, {"Accept-Ranges": "bytes"} | headers, content)
        begin, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        span = {"Content-Range": f"bytes {begin}-{end}/{len(content)}"}
        return self.answer(206, span | headers, content[begin : end + 1])

    def answer_json(self, content: object, status: int = 200) -> None:
        self.answer(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.server.sent += len(body)

    def log_message(self, *_) -> None:
        """Tests read ``asked`` instead."""


def files(folder: Path) -> dict[str, Path]:
    """A folder's files by their names in the repository."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def plan(name: str, there: dict[str, Path]) -> dict:
    """How a file is to be sent, and the content that the repository has of it now."""
    large = name.endswith(LARGE)
    known = {"oid": (sha256 if large else blob_id)(there[name])} if name in there else {}
    return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known}


def describe(name: str, path: Path) -> dict:
    """A file's or a folder's line in a tree."""
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    size = path.stat().st_size
    large = {"lfs": {"oid": sha256(path), "size": size, "pointerSize": 134}} if path.suffix in LARGE else {}
    return {"type": "file", "path": name, "oid": blob_id(path), "size": size, **large}


def blob_id(path: Path) -> str:
    """Git's name for a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def serve(repos: Repos, tokens: dict[str, str] | None = None) -> Iterator[Hub]:
    """Serve repositories until the block ends."""
    with tempfile.TemporaryDirectory() as folder, Hub(repos, tokens or {}, Path(folder)) as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()

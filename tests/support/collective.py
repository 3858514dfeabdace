"""A stand-in for Mozilla Data Collective on the loopback: its list of data sets, its links, and its storage.

As there, a key and accepted terms buy a link that holds for a while, here for so many requests, and that gives any
range of the archive to whoever has it. ``faults`` go wrong one after another, one a request to the storage.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import parse_qs, urlsplit

KEY = "mdc_key-0123456789"
ID, LOCALE = "cmn2e8gr301evo1079gujuzqr", "sv-SE"
PATIENCE = 60  # seconds


class Collective(ThreadingHTTPServer):
    """Serves one archive.

    size, checksum: what is said of it; ``offered`` gives the latter anew each time.
    refusal: status, headers and JSON that a request for a link is answered with.
    link_uses: requests that a link is good for.
    faults: of the storage's next answers, the first one first: ``cut N`` ends after N bytes, ``whole`` ignores Range
    (``whole cut N``: both), ``elsewhere`` sends another range, ``changed`` another byte, ``hold`` tells ``held`` and
    sends nothing until ``released``; a number is a status.
    starts: where each answer began.
    """

    daemon_threads = True

    def __init__(self, archive: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive, self.size, self.checksum = archive, str(len(archive)), hashlib.sha256(archive).hexdigest()
        self.datasets = [dataset(ID, "25.0"), dataset("cmqintw0q00xwnr07mjjzpe61", "26.0")]
        self.offered: Callable[[], str] = lambda: self.checksum
        self.refusal: tuple[int, dict[str, str], object] | None = None
        self.link_uses = 1000
        self.links: dict[str, int] = {}  # how often each may still be used
        self.faults: list[str] = []
        self.starts: list[int] = []
        self.errors: list[str] = []
        self.held, self.released = Event(), Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/api"


def dataset(id: str, release: str, locale: str = LOCALE) -> dict[str, object]:
    """A data set's entry in the list."""
    return {"id": id, "name": f"Common Voice Scripted Speech {release} - Swedish", "locale": locale}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collective

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        if place.path == "/api/datasets":
            self.list_datasets({name: values[0] for name, values in parse_qs(place.query).items()})
        elif link := re.fullmatch(r"/store/(\w+)", place.path):
            self.send_archive(link[1])
        else:
            self.answer_json(404, {"error": "Not found"})

    def do_POST(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self.answer_json(401, {"error": "Invalid API key"})
        elif self.server.refusal:
            status, headers, content = self.server.refusal
            self.answer_json(status, content, headers)
        elif self.path not in [f"/api/datasets/{one['id']}/download" for one in self.server.datasets]:
            self.answer_json(404, {"error": "Dataset not found"})
        else:
            link = f"secret{len(self.server.links)}"
            self.server.links[link] = self.server.link_uses
            content = {
                "downloadUrl": f"http://localhost:{self.server.server_port}/store/{link}?X-Amz-Signature={link}",
                "sizeBytes": self.server.size,
                "checksum": self.server.offered(),
                "filename": "../common-voice.tar.gz",
                "expiresAt": "2026-11-25T00:00:00.000Z",
            }
            self.answer_json(200, content)

    def list_datasets(self, query: dict[str, str]) -> None:
        found = [one for one in self.server.datasets if one["locale"] == query["locale"]]
        size, page = int(query["limit"]), int(query["page"])
        self.answer_json(200, {"items": found[(page - 1) * size : page * size], "total": len(found)})

    def send_archive(self, link: str) -> None:
        if "Authorization" in self.headers:
            self.server.errors.append("the storage was told the key")
        self.server.links[link] -= 1
        if self.server.links[link] < 0:
            return self.answer(403, {}, b"<Error><Code>AccessDenied</Code>Request has expired</Error>")
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault.isdigit():
            return self.answer(int(fault), {}, b"")
        if fault == "hold":
            self.server.held.set()
            self.server.released.wait(PATIENCE)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked and "whole" not in fault else 0
        self.server.starts.append(begin)
        content = self.server.archive[begin:]
        said = begin + 1 if fault == "elsewhere" else begin
        span = {"Content-Range": f"bytes {said}-{len(self.server.archive) - 1}/{len(self.server.archive)}"}
        if fault == "changed":
            content = content[:-1] + bytes([content[-1] ^ 1])
        kept = int(fault.split()[-1]) if "cut" in fault else None
        partial = asked is not None and "whole" not in fault
        return self.answer(206 if partial else 200, span if partial else {}, content, kept)

    def answer_json(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        self.answer(status, {"Content-Type": "application/json"} | (headers or {}), json.dumps(content).encode())

    def answer(self, status: int, headers: dict[str, str], body: bytes, kept: int | None = None) -> None:
        """Send an answer; of its body the first bytes alone where only so many are kept."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:kept])
        self.close_connection = kept is not None

    def log_message(self, *_) -> None:
        """Tests read what was asked instead."""


@contextmanager
def serve_collective(archive: bytes) -> Iterator[Collective]:
    """The collective, for as long as the block lasts, in which nothing went to anybody whom it does not concern."""
    with Collective(archive) as server:
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
    assert server.errors == []

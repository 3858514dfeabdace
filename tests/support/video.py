"""Stand-ins on the loopback for the places where videos lie: a plain web server, and YouTube itself.

One port answers plain requests, and CONNECT as a proxy would, going on in TLS with a certificate of its own authority.
For YouTube it knows the requests that yt-dlp's own extractor sends: a video's page, its player's answer, its sound.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from app.video import VideoSource
from tests.support.authority import make_authority

STORE = "rr1---sn-abc.googlevideo.com"
HOSTS = ["www.youtube.com", STORE]
VIDEO = "dQw4w9WgXcQ"


@dataclass(frozen=True)
class Reply:
    """What is answered; ``length`` is the Content-Length that is claimed, where not the body's, and None says none."""

    body: bytes = b""
    kind: str = "audio/mpeg"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = -1


class Site(ThreadingHTTPServer):
    """Answers what stands in ``replies`` by path; ``asked`` has each ``GET host/path`` and ``CONNECT host``."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: dict[str, Reply] = {}
        self.asked: list[str] = []
        self.authority, self.tls = make_authority(folder, HOSTS)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def source(self) -> VideoSource:
        """Where ``fetch_audio`` finds this site: yt-dlp's generic extractor, and no other host."""
        return VideoSource(str, ("generic",), "http", (f"127.0.0.1:{self.server_port}",))

    def show(self, sound: bytes = b"", status: dict | None = None, **details) -> None:
        """Have YouTube's only video: its sound, what its player says of it, and its details."""
        url = f"https://{STORE}/videoplayback?itag=140&expire=4102444800"
        track = {"itag": 140, "url": url, "mimeType": 'audio/mp4; codecs="mp4a.40.2"', "bitrate": 48_000}
        track |= {"contentLength": str(len(sound)), "audioQuality": "AUDIO_QUALITY_MEDIUM", "audioSampleRate": "44100"}
        player = {
            "playabilityStatus": status or {"status": "OK"},
            "videoDetails": {"videoId": VIDEO, "title": "Ett klipp", "lengthSeconds": "5"} | details,
            "streamingData": {"adaptiveFormats": [track]} if status is None else {},
        }
        self.replies["/watch"] = Reply(b"<html><title>Ett klipp</title></html>", "text/html")
        self.replies["/youtubei/v1/player"] = Reply(json.dumps(player).encode(), "application/json")
        self.replies["/youtubei/v1/next"] = Reply(b'{"contents": {}}', "application/json")
        embedded = (
            b'<script>ytcfg.set({"INNERTUBE_CONTEXT": {"client": {"clientName": "WEB_EMBEDDED_PLAYER"}}});</script>'
        )
        self.replies[f"/embed/{VIDEO}"] = Reply(embedded, "text/html")
        self.replies["/videoplayback"] = Reply(sound, "audio/mp4")


class Handler(BaseHTTPRequestHandler):
    server: Site
    host = "127.0.0.1"

    def do_CONNECT(self) -> None:
        self.host, _, port = self.path.partition(":")
        self.server.asked.append(f"CONNECT {self.host}")
        if self.host not in HOSTS or port != "443":
            return self.send_error(403)
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.handle_one_request()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {self.host}{path}")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        reply = self.server.replies.get(path, Reply(status=404))
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        whole = reply.body
        if start and reply.length == -1:
            body = whole[int(start[1]) : int(start[2] or len(whole)) + 1]
            extent = f"bytes {start[1]}-{int(start[1]) + len(body) - 1}/{len(whole)}"
            reply = Reply(body, reply.kind, 206, {"Content-Range": extent})
        self.send_response(reply.status)
        length = len(reply.body) if reply.length == -1 else reply.length
        claims = {"Content-Type": reply.kind, "Content-Length": length, "Connection": "close"} | reply.headers
        for name, value in claims.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        with suppress(OSError):  # the client has had enough
            self.wfile.write(reply.body)
        self.close_connection = True

    do_POST = do_HEAD = do_GET

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()
        self.connection.close()

    def log_message(self, *_) -> None:
        """Tests read ``asked`` instead."""


@contextmanager
def serve(folder: Path) -> Iterator[Site]:
    """Serve until the block ends; the authority's file lies in the folder."""
    with Site(folder) as site:
        thread = Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()

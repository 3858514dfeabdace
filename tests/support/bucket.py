"""A stand-in for S3 on the loopback: the parts of its protocol by which buckets are listed and read, path-style.

A folder's folders are its buckets. It takes any signature, lists by pages, sends any range of an object, and has
faults that go wrong one after another.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

DATE = "2026-03-02T08:00:00.000Z"  # of every object
PAGE = 3  # entries of a listing
FAULTS = {"503": "SlowDown", "403": "AccessDenied"}
LISTING = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}</ListBucketResult>'


class Bucket(ThreadingHTTPServer):
    """Serves a folder.

    faults: of the next answers with an object's bytes, the first one first: ``cut`` ends in the middle, ``reset``
    before it begins, a number is a status. asked: every request; sent: how many bytes of each object.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.sent = Counter[str]()

    @property
    def environment(self) -> dict[str, str]:
        """Where the client looks for it, with keys that it does not ask for."""
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-north-1"}
        return keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_port}", "AWS_EC2_METADATA_DISABLED": "true"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def answer_request(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        place = urlsplit(self.path)
        bucket, _, key = unquote(place.path).lstrip("/").partition("/")
        folder = self.server.folder / bucket
        if not folder.is_dir():
            self.refuse(404, "NoSuchBucket")
        elif key:
            self.send_object(folder / key)
        elif self.command == "HEAD":
            self.answer(200)
        else:
            self.list_objects(folder, dict(parse_qsl(place.query)))

    do_GET = do_HEAD = answer_request

    def list_objects(self, folder: Path, query: dict[str, str]) -> None:
        """A page of what begins with a prefix, up to the next delimiter."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        found = {}
        for name in (name for name in names if name.startswith(prefix)):
            rest, is_folder, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            found[prefix + rest + delimiter if is_folder else name] = bool(is_folder)
        begin = int(query.get("continuation-token", 0))
        end = begin + min(PAGE, int(query.get("max-keys", PAGE)))
        more = end < len(found)
        said = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        said += f"<NextContinuationToken>{end}</NextContinuationToken>" if more else ""
        for name, is_folder in list(found.items())[begin:end]:
            if is_folder:
                said += f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            else:
                data = (folder / name).read_bytes()
                said += f"<Contents><Key>{escape(name)}</Key><LastModified>{DATE}</LastModified>"
                said += f"<ETag>{etag(data)}</ETag><Size>{len(data)}</Size></Contents>"
        self.answer(200, {"Content-Type": "application/xml"}, LISTING.format(said).encode())

    def send_object(self, path: Path) -> None:
        if not path.is_file():
            return self.refuse(404, "NoSuchKey")
        data = path.read_bytes()
        headers = {"ETag": etag(data), "Last-Modified": "Mon, 02 Mar 2026 08:00:00 GMT"}
        if self.command == "HEAD":
            return self.answer(200, headers | {"Content-Length": str(len(data))})
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault.isdigit():
            return self.refuse(int(fault), FAULTS[fault])
        if fault == "reset":
            self.close_connection = True
            return None
        begin, end = 0, len(data)
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            begin = int(asked[1]) if asked[1] else max(end - int(asked[2]), 0)
            end = min(int(asked[2]) + 1, end) if asked[1] and asked[2] else end
            if begin >= len(data):
                return self.refuse(416, "InvalidRange")
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        self.server.sent[self.path] += end - begin
        kept = (end - begin) // 2 if fault == "cut" else None
        return self.answer(206 if asked else 200, headers, data[begin:end], kept)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {}, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", kept: int | None = None
    ) -> None:
        """Send an answer; of its body the first bytes alone where only so many are kept."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:kept])
        self.close_connection |= kept is not None

    def log_message(self, *_) -> None:
        """Tests read ``asked`` instead."""


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@contextmanager
def serve_bucket(folder: Path) -> Iterator[Bucket]:
    """Serve a folder of buckets until the block ends."""
    with Bucket(folder) as server:
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()

"""What comes to the demo's server at all: whose page asks, how much is sent, how fast, and what stays on the disk.

An ASGI layer around gradio, which lets every page of the Internet drive a server on localhost, reads bodies of any
size, and keeps what is left of uploads that broke off. What is refused gets one sentence; nothing of it stays.
Below it, in uvicorn, a limit to connections whose requests never begin.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.texts import preferred_language, translate_error
from app.turns import OWN_COMPUTER
from stages.params import App

MAX_BODY = 1_000_000  # bytes of what is no upload: a page's events have hundreds
MAX_DEPTH = 64  # of brackets in it
MAX_FORM = 100_000  # bytes of an upload beside its file
MAX_PARTS = 8  # of an upload; the page and gradio_client send one file each
UPLOAD_PATH = "/gradio_api/upload"
HEAD_SECONDS = 10.0  # for a request's head, from the connection's begin or from the first byte after another request
HEADLESS_OF_ONE = 32  # connections of one visitor that still owe it; browsers open a few ahead of their requests
HEADLESS_SECONDS = 1.0  # before they count: of heads that came while the server was busy none has been read yet
BODY_SECONDS = 20.0  # for a whole body, and for each next piece of an upload
SLOWEST = 20_000  # bytes a second that an upload has in the mean
TOGETHER = 20_000_000  # and all those of other computers: hashing and writing them costs those who wait for text
UPLOADS_OF_ONE = 4  # of one visitor at once; more of them wait,
WAITING_UPLOADS = 64  # no more than these: each holds memory for what has come of it
FILES_OF_ONE = 1000  # of one visitor: all files are counted anew for each upload
SHARE_OF_ONE = 4  # a visitor may hold a quarter of what is free: the more there are, the less each, and never all of it
SPARE_BYTES = 200_000_000  # of the disk that uploads leave free
LINGER_SECONDS = 5.0  # that a refused request is read on,
LINGER_SPEED = 2_000_000  # so many bytes a second
SWEEP_SECONDS = 30.0
PARTIAL_SECONDS = 120.0  # after which an upload's own file that no longer grows is of one that broke off
KEEP_SECONDS = 3600  # that a file stays, beyond what one transcription may take
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LOOPBACK_NETWORKS = ("127.0.0.0/8", "::1/128")  # where gradio's tunnel of --share ends
FORWARDED = (b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-for", b"x-forwarded-port", b"forwarded")
SLOW_UPLOAD = "The upload came too slowly: try again."

Arrived = Callable[[int], None]
log = logging.getLogger(__name__)


class RefusedError(Exception):
    """What is told, with its status."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass
class UploadFolder:
    """The folder of all uploads, bounded as a whole, by visitor, and by what the disk has.

    gradio writes an upload as a file in it, and moves it to a folder of its own when it is whole.
    """

    path: Path
    quota: int  # bytes
    keep: float  # seconds
    coming: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # bytes on their way, by visitor
    owned: dict[str, set[Path]] = field(default_factory=lambda: defaultdict(set))
    owning: threading.Lock = field(default_factory=threading.Lock)  # held while the sets of owned change

    @contextlib.contextmanager
    def room(self, client: str, size: int) -> Iterator[Arrived]:
        """Hold room for an upload while it comes, less what has come; raises RefusedError where there is none."""
        held = sum(map(file_size, self.owned[client])) + self.coming[client]
        coming = sum(self.coming.values())
        free = self.quota - self.used() - coming
        many = len(self.owned[client]) >= FILES_OF_ONE or (held and held + size > free // SHARE_OF_ONE)
        if client not in OWN_COMPUTER and many:
            raise RefusedError(429, "You have many files here already: try again in an hour.")
        if size > (free if client in OWN_COMPUTER else free // SHARE_OF_ONE):
            raise RefusedError(507, "The server holds as many files as it may: try again in some minutes.")
        if shutil.disk_usage(self.path).free < coming + size + SPARE_BYTES:
            raise RefusedError(507, "The server's disk is full: try again in some minutes.")
        self.coming[client] += size
        left = size

        def arrived(length: int) -> None:
            nonlocal left
            length = min(length, left)
            self.coming[client] -= length
            left -= length

        try:
            yield arrived
        finally:
            arrived(left)

    def own(self, client: str, paths: set[Path]) -> None:
        """Count files as a visitor's."""
        with self.owning:
            self.owned[client] |= paths

    def used(self) -> int:
        """Bytes of all that is there."""
        return sum(map(file_size, self.found()))

    def found(self) -> list[Path]:
        """All that is there, what a folder holds before itself. What goes meanwhile is no error, as it is to rglob."""
        walk = os.walk(self.path, topdown=False)
        return [Path(folder, name) for folder, folders, files in walk for name in [*files, *folders]]

    def sweep(self) -> None:
        """Delete what is old or broke off, and folders that became empty."""
        now = time.time()
        for path in self.found():
            with contextlib.suppress(OSError):
                if path.is_dir() and not path.is_symlink():
                    if age(path, now) > PARTIAL_SECONDS:
                        path.rmdir()
                elif age(path, now) > (PARTIAL_SECONDS if path.parent == self.path else self.keep):
                    path.unlink()
        with self.owning:
            for client in list(self.owned):
                self.owned[client] = {path for path in self.owned[client] if path.exists()}
                if not self.owned[client]:
                    del self.owned[client]

    @contextlib.contextmanager
    def swept(self) -> Iterator[None]:
        """Sweep now and then."""
        over = threading.Event()

        def go() -> None:
            while not over.wait(SWEEP_SECONDS):
                self.sweep()

        threading.Thread(target=go, daemon=True).start()
        try:
            yield
        finally:
            over.set()


def file_size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def age(path: Path, now: float) -> float:
    """Seconds since a file changed."""
    try:
        return now - path.stat().st_mtime
    except OSError:
        return 0.0


@dataclass
class Visitors:
    """Who may ask, by the names that the page goes by.

    names: of this server, in lower case. any_address: it listens to other computers, so that an address is a name too.
    any_name: there is nothing to guard by name, as in a Space, whose proxy decides. proxies: networks whose word on the
    visitor and on the name counts. frames: whose pages may show this one within theirs, as a content security policy
    says it.
    """

    names: set[str]
    proxies: list[str] = field(default_factory=list)
    any_address: bool = False
    any_name: bool = False
    frames: str = "'self'"

    @classmethod
    def of_server(cls, host: str, share: bool, settings: App) -> "Visitors":
        """Those of a server that listens on an address; in a Space those of the Space's own page."""
        names = {*LOOPBACK, host.lower(), *map(str.lower, settings.hosts)}
        if space := os.environ.get("SPACE_HOST"):
            return cls({*names, space.lower()}, any_name=True, frames="'self' https://huggingface.co")
        if host in LOOPBACK:
            return cls(names, settings.proxies + list(LOOPBACK_NETWORKS) * share)
        own = socket.gethostname().lower()
        return cls({*names, own, f"{own}.local"}, settings.proxies + list(LOOPBACK_NETWORKS) * share, any_address=True)

    def seen(self, scope: Scope) -> Scope:
        """The request as it is known to be: forwarded headers count from a proxy alone."""
        client = (scope.get("client") or ("", 0))[0]
        if not self.is_proxy(client):
            headers = [(name, value) for name, value in scope["headers"] if name.lower() not in FORWARDED]
            return {**scope, "headers": headers}
        lines = Headers(scope=scope).getlist("x-forwarded-for")  # a proxy may add a line of its own to a visitor's
        chain = [without_port(part) for part in ",".join(lines).split(",") if part.strip()]
        if self.any_name:
            beyond = [address for address in chain if address not in OWN_COMPUTER]
        else:
            beyond = [address for address in chain if not self.is_proxy(address)][-1:]
        visitor = next(iter(beyond), client)
        return {**scope, "client": (visitor, 0)}

    def is_proxy(self, address: str) -> bool:
        if self.any_name:
            return True
        try:
            return any(ip_address(address) in ip_network(proxy, strict=False) for proxy in self.proxies)
        except ValueError:
            return False

    def check(self, scope: Scope) -> None:
        """Raise RefusedError where another page asks, or the page under a name that is not this server's.

        A name of somebody's own may lead to 127.0.0.1, and make this page its own (DNS rebinding); an address cannot.
        """
        headers = Headers(scope=scope)
        host = headers.get("x-forwarded-host") or headers.get("host") or ""
        name = host_name(host)
        if not (self.any_name or name in self.names or (self.any_address and is_address(name))):
            raise RefusedError(403, f"This page does not go by the name {name[:80]!r}: see app.hosts in params.yaml.")
        origin = headers.get("origin")
        if origin is None:
            return
        theirs = origin.partition("://")[2].lower()
        page = host_name(theirs)
        if theirs == host.lower() or page in self.names - set(LOOPBACK):
            return
        if page in LOOPBACK:  # whatever else this computer serves
            raise RefusedError(403, "Another page may not use this one.")
        raise RefusedError(
            403,
            f"Another page may not use this one: if {page[:80]!r} is this page's own name, put it in app.hosts of"
            " params.yaml.",
        )


def without_port(address: str) -> str:
    """An address of X-Forwarded-For, to which some proxies add a port: ``1.2.3.4:567``, ``[::1]:567``."""
    address = address.strip()
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def host_name(host: str) -> str:
    """The name in a Host header, without its port: ``localhost`` of ``localhost:7860``, ``::1`` of ``[::1]:7860``."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower().rstrip(".")
    except ValueError:
        return ""


def is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ip_address(name))
    return False


class Guard:
    """The ASGI layer: what it lets in, gradio answers."""

    def __init__(self, app: ASGIApp, visitors: Visitors, folder: UploadFolder, max_upload: int):
        """max_upload: bytes of a file."""
        self.app, self.visitors, self.folder, self.max_upload = app, visitors, folder, max_upload
        self.uploading: dict[str, Uploading] = defaultdict(Uploading)
        self.pacing = Pacing()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        scope, refusal = self.visitors.seen(scope), None
        try:
            self.visitors.check(scope)
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self.app(scope, receive, answer)
            elif scope["path"].rstrip("/") == UPLOAD_PATH:
                await self.take_upload(scope, receive, answer)
            else:
                body = {"type": "http.request", "body": await read_body(receive), "more_body": False}
                await self.app(scope, replay(body, receive), answer)
        except RefusedError as error:
            refusal = error
        except ClientDisconnect:  # whoever went away needs no answer, and the log no traceback
            return
        except Exception as error:  # gradio's routes raise anything for what no page sends
            log.warning("a request to %s failed: %r", scope["path"][:80], error)
            refusal = RefusedError(400, "The request is not as this page sends it.")
        if refusal and not begun:
            await refuse(refusal, scope, receive, send)

    async def take_upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let an upload in as it comes; what its visitor sends beside it waits."""
        client, headers = scope["client"][0] if scope["client"] else "", Headers(scope=scope)
        size = headers.get("content-length", "")
        if not size.isdecimal():
            raise RefusedError(411, "An upload has to say how long it is.")
        if int(size) > self.max_upload + MAX_FORM:
            raise RefusedError(
                413, f"A file may have {self.max_upload // 1_000_000} MB: send a shorter one, or as mp3."
            )
        boundary = headers.get("content-type", "").partition("boundary=")[2].strip('"; ').encode()
        own = client in OWN_COMPUTER
        async with self.turn(client):
            piece = await first_piece(receive)
            with self.folder.room(client, int(size)) as arrived:
                upload = Upload(
                    replay(piece, receive), send, int(size), boundary, arrived, None if own else self.pacing
                )
                self.pacing.uploads += not own
                try:
                    await self.app(scope, upload.receive, upload.send)
                except ClientDisconnect:
                    if upload.refusal:
                        raise upload.refusal from None
                    raise
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    self.folder.sweep()
                    raise RefusedError(507, "The server's disk is full: try again in some minutes.") from None
                finally:
                    self.pacing.uploads -= not own
                self.folder.own(client, set(upload.paths()))

    @contextlib.asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """One of the few uploads that a visitor may have under way; raises RefusedError where too many wait for it."""
        theirs = self.uploading[client]
        if client not in OWN_COMPUTER and theirs.known >= UPLOADS_OF_ONE + WAITING_UPLOADS:
            raise RefusedError(429, "You send many files at once: try again when they are here.")
        theirs.known += 1
        try:
            async with theirs.turns:
                yield
        finally:
            theirs.known -= 1
            if not theirs.known:
                del self.uploading[client]


@dataclass
class Uploading:
    """The uploads of one visitor. known: those under way and those that wait."""

    known: int = 0
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS_OF_ONE))


@dataclass
class Pacing:
    """What uploads share: as many bytes a second for all of them together."""

    uploads: int = 0

    async def pause(self, length: int) -> None:
        """As long as an upload's next piece may take."""
        await asyncio.sleep(length * self.uploads / TOGETHER)


class Upload:
    """One upload as it comes: it may not be slow, nor have many parts, and its answer says where its files lie."""

    def __init__(
        self, receive: Receive, send: Send, size: int, boundary: bytes, arrived: Arrived, pacing: Pacing | None
    ):
        """arrived: is told the bytes of each piece."""
        self.read, self.answer, self.arrived, self.pacing = receive, send, arrived, pacing
        self.delimiter, self.tail, self.parts = b"\r\n--" + boundary, b"", 0  # after each part
        self.deadline = time.monotonic() + BODY_SECONDS + size / SLOWEST
        self.refusal: RefusedError | None = None
        self.body, self.status = b"", 0

    async def receive(self) -> Message:
        """The next piece, or a disconnection where it is refused, so that gradio ends."""
        try:
            async with asyncio.timeout(min(BODY_SECONDS, max(self.deadline - time.monotonic(), 0))):
                message = await self.read()
        except TimeoutError:
            return self.refuse(RefusedError(408, SLOW_UPLOAD))
        if message["type"] == "http.request":
            body = message.get("body", b"")
            piece = self.tail + body
            self.arrived(len(body))
            if self.pacing:
                await self.pacing.pause(len(body))
            self.parts += piece.count(self.delimiter)
            self.tail = piece[-len(self.delimiter) + 1 :]
            if self.parts > MAX_PARTS:
                return self.refuse(RefusedError(413, f"An upload may have {MAX_PARTS} files: send them one by one."))
        return message

    def refuse(self, refusal: RefusedError) -> Message:
        self.refusal = refusal
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif len(self.body) < MAX_FORM:
            self.body += message.get("body", b"")
        await self.answer(message)

    def paths(self) -> list[Path]:
        """Where gradio put the files."""
        if self.status != 200:
            return []
        with contextlib.suppress(ValueError, TypeError):
            return [Path(path) for path in json.loads(self.body)]
        return []


async def refuse(refusal: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and read on a little before the connection closes.

    A client that is still sending would else be reset before it read the answer (RFC 9112, section 9.6).
    """

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.body":
            message["more_body"] = True
        await send(message)

    sentence = translate_error(preferred_language(Headers(scope=scope).get("accept-language")), refusal.sentence)
    await PlainTextResponse(sentence, refusal.status, {"connection": "close"})(scope, receive, answer)
    begun, received, more = time.monotonic(), 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while more:
                message = await receive()
                received += len(message.get("body", b""))
                more = message.get("more_body", False)
                await asyncio.sleep(received / LINGER_SPEED - (time.monotonic() - begun))
    await send({"type": "http.response.body"})


async def first_piece(receive: Receive) -> Message:
    """The first piece of an upload that may have waited.

    Raises RefusedError where it does not come, and ClientDisconnect where nobody is there any more.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            message = await receive()
    except TimeoutError:
        raise RefusedError(408, SLOW_UPLOAD) from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


async def read_body(receive: Receive) -> bytes:
    """A request's whole body; raises RefusedError where it is long, deep or slow, and ClientDisconnect."""
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MAX_BODY:
                    raise RefusedError(413, f"A request may have {MAX_BODY // 1000} kB.")
    except TimeoutError:
        raise RefusedError(408, "The request came too slowly: try again.") from None
    if bracket_depth(bytes(body)) > MAX_DEPTH:
        raise RefusedError(400, "The request's values are nested too deeply.")
    return bytes(body)


def bracket_depth(body: bytes) -> int:
    """How deep brackets are nested in a text, those within its strings included."""
    values = np.frombuffer(body, np.uint8)
    steps = np.isin(values, list(b"[{")).astype(np.int32) - np.isin(values, list(b"]}"))
    return int(np.cumsum(steps).max(initial=0))


def replay(message: Message, receive: Receive) -> Receive:
    """A message that was read, to be read again, and then what follows it."""
    messages = iter([message])

    async def again() -> Message:
        return next(messages, None) or await receive()

    return again


class HeadLimit(H11Protocol):
    """uvicorn's connection, ended where no whole request head comes within HEAD_SECONDS: uvicorn waits for ever.

    Of a visitor's connections that wait for one, the oldest ends where there are too many. A request that runs, however
    long, is not its matter, nor a pause between two, which uvicorn bounds.
    """

    waiting: asyncio.TimerHandle | None = None  # for a head

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.wait()
        self.loop.call_later(HEADLESS_SECONDS, self.make_room)

    def make_room(self) -> None:
        """End the oldest of this visitor's connections that wait, this one perhaps, where there are too many."""
        if not self.waiting:
            return
        theirs = [each for each in self.connections if isinstance(each, HeadLimit) and each.waits_for(self.client)]
        if len(theirs) > HEADLESS_OF_ONE:
            min(theirs, key=HeadLimit.deadline).end()

    def data_received(self, data: bytes) -> None:
        request = self.cycle
        super().data_received(data)
        if self.cycle is not request:
            self.wait_no_more()
        elif self.waiting is None and (self.cycle is None or self.cycle.response_complete):
            self.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self.wait_no_more()
        super().connection_lost(exc)

    def wait(self) -> None:
        self.waiting = self.loop.call_later(HEAD_SECONDS, self.end)

    def wait_no_more(self) -> None:
        if self.waiting:
            self.waiting.cancel()
        self.waiting = None

    def waits_for(self, client: tuple[str, int] | None) -> bool:
        """Whether it waits for the head of a request of this visitor."""
        return bool(self.waiting and client and self.client and self.client[0] == client[0])

    def deadline(self) -> float:
        return self.waiting.when() if self.waiting else 0.0

    def end(self) -> None:
        self.wait_no_more()
        self.transport.abort()

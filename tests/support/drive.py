"""A stand-in for Google Drive (API v2) on the loopback, for unmodified DVC processes and for our own tool.

One port answers CONNECT for Google's hosts, as a proxy would, and goes on in TLS with a certificate of its own
authority. It keeps the protocol's rules: ids are opaque, a title may occur twice, an upload appears when it is
complete, what is in the trash counts against the quota. What it does not know it answers with 400 and notes in
``errors``, which the tests want empty. Faults come by script: see ``FAULTS``.
"""

import base64
import hashlib
import json
import random
import re
import socket
import struct
import threading
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlparse

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support.authority import make_authority
from tests.support.query import Query, QueryError, select_fields

GOOGLE_HOSTS = ["www.googleapis.com", "oauth2.googleapis.com"]
FOLDER_MIME = "application/vnd.google-apps.folder"
SCOPE = "https://www.googleapis.com/auth/drive"
UPLOAD_UNIT = 256 * 1024  # bytes; an interrupted upload keeps whole ones, and every chunk but the last is of whole ones
CLIENT = {"client_id": "client-1.apps.googleusercontent.com", "client_secret": "GOCSPX-very-secret"}
WRITERS = ("owner", "writer")
API_ROUTES = [  # method, path, operation, the query's parameters
    ("GET", r"/drive/v2/about", "about", "fields"),
    ("GET", r"/drive/v2/files", "list", "q maxResults pageToken corpora driveId fields"),
    ("GET", r"/drive/v2/files/(?P<id>[^/]+)", "get", "fields acknowledgeAbuse"),
    ("POST", r"/drive/v2/files", "insert", ""),
    ("POST", r"/drive/v2/files/(?P<id>[^/]+)/trash", "trash", ""),
    ("DELETE", r"/drive/v2/files/(?P<id>[^/]+)", "delete", ""),
    ("POST", r"/(resumable/)?upload/drive/v2/files", "start", "uploadType fields"),
    ("PUT", r"/upload/drive/v2/files", "put", "uploadType upload_id"),
    ("POST", r"/token", "token", ""),
]
COMMON_PARAMETERS = {"alt", "supportsAllDrives", "includeItemsFromAllDrives", "prettyPrint"}
API_OPERATIONS = {"about", "list", "get", "insert", "trash", "delete", "start", "put", "download"}
FAULTS = {  # each fault by the operations in which it can be injected
    "429": API_OPERATIONS,
    "500 with HTML": API_OPERATIONS | {"token"},
    "503": API_OPERATIONS,
    "silence": API_OPERATIONS,
    "token expiry": API_OPERATIONS,
    "reset mid-upload": {"put"},
    "cut without reply": {"put"},
    "stored then cut": {"put", "insert"},
    "stored then 503": {"put", "insert"},
    "cut download": {"download"},
    "flipped byte": {"download"},
    "quota reached": {"start"},
}


@dataclass
class DriveItem:
    """A file or folder as Drive keeps it."""

    id: str
    title: str
    parent: str | None
    mime: str
    owner: str
    data: bytes = b""
    created: str = ""
    trashed: bool = False
    drive: str | None = None  # the shared drive it is in
    roles: dict[str, str] = field(default_factory=dict)  # by account; below it they hold too

    def resource(self) -> dict:
        """Its v2 resource."""
        known = {"kind": "drive#file", "id": self.id, "title": self.title, "mimeType": self.mime}
        known |= {"createdDate": self.created, "modifiedDate": self.created, "labels": {"trashed": self.trashed}}
        known |= {"parents": [{"id": self.parent, "kind": "drive#parentReference"}] if self.parent else []}
        if self.drive:
            known["driveId"] = self.drive
        if self.mime != FOLDER_MIME:
            known |= {"fileSize": str(len(self.data)), "md5Checksum": hashlib.md5(self.data).hexdigest()}
        return known


@dataclass
class Upload:
    """A resumable session."""

    item: DriveItem
    size: int
    received: bytearray = field(default_factory=bytearray)
    done: bool = False


class ErrorResponse(Exception):
    """An answer with an error: status, reason, message."""

    def __init__(self, status: int, reason: str, message: str = ""):
        super().__init__(message or reason)
        self.status, self.reason = status, reason


class Drive(ThreadingHTTPServer):
    """Holds the accounts and their files; ``operations`` has every operation, ``injected`` every fault, in order."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), DriveHandler)
        self.authority, self.tls = make_authority(folder, GOOGLE_HOSTS)
        self.lock = threading.RLock()
        self.random = random.Random(7)
        self.items: dict[str, DriveItem] = {}
        self.uploads: dict[str, Upload] = {}
        self.tokens: dict[str, str] = {}  # the account by access token
        self.refresh_tokens: dict[str, str] = {}  # the account by refresh token
        self.codes: dict[str, tuple[str, str]] = {}  # the account and redirect address by code
        self.services: dict[str, rsa.RSAPublicKey] = {}  # service accounts
        self.quotas: dict[str, int] = {}  # bytes by account; without an entry there is no limit
        self.page_size, self.api_enabled, self.testing = 1000, True, False
        self.operations: list[str] = []
        self.errors: list[str] = []
        self.injected: list[str] = []
        self.received: list[int] = []  # bytes of each chunk that came
        self.script: Callable[[str], str | None] = FaultScript([])
        self.root = self.add("root of anna", None, owner="anna@example.com").id

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What makes a process use this Drive, and nothing of the person who runs the tests."""
        names = ["HOME", "XDG_CACHE_HOME", "DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"]
        folders = {name: str(home / name.lower()) for name in names}
        flags = {"DVC_NO_ANALYTICS": "1", "GDRIVE_NON_INTERACTIVE": "1", "no_proxy": "", "NO_PROXY": ""}
        return folders | flags | {"https_proxy": self.url, "HTTPLIB2_CA_CERTS": str(self.authority)}

    def counts(self) -> Counter:
        return Counter(self.operations)

    # What tests prepare and look at

    def add(self, title: str, parent: str | None, data: bytes | None = None, **values) -> DriveItem:
        """A new file, or a folder where there is no data."""
        with self.lock:
            above = self.items.get(parent or "")
            values = {"owner": above.owner if above else "", "drive": above.drive if above else None} | values
            mime = FOLDER_MIME if data is None else "application/octet-stream"
            item = DriveItem(self.new_id(), title, parent, mime, data=data or b"", **values)
            item.created = item.created or self.now()
            if not parent:
                item.roles.setdefault(item.owner, "owner")
            self.items[item.id] = item
            return item

    def share(self, item: DriveItem, account: str, role: str = "writer") -> None:
        item.roles[account] = role

    def shared_drive(self, *accounts: str) -> DriveItem:
        """The top folder of a shared drive with these members."""
        top = self.add("shared", None, owner="organisation")
        top.drive, top.roles = top.id, dict.fromkeys(accounts, "writer")
        return top

    def files(self, trashed: bool = False) -> list[DriveItem]:
        """Every file that is no folder."""
        return [item for item in self.items.values() if item.mime != FOLDER_MIME and item.trashed is trashed]

    def children(self, id: str) -> list[DriveItem]:
        return [item for item in self.items.values() if item.parent == id]

    def duplicates(self) -> list[str]:
        """Titles that occur twice below folders of one name."""
        names = Counter((self.items[item.parent].title, item.title) for item in self.files())
        return ["".join(name) for name, count in names.items() if count > 1]

    def service_account(self, email: str, key: rsa.RSAPrivateKey) -> dict:
        """A new service account; returns its key file's content."""
        self.services[email] = key.public_key()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        known = {"type": "service_account", "client_email": email, "private_key": pem.decode()}
        uri = "https://oauth2.googleapis.com/token"
        return known | {"private_key_id": "key-1", "client_id": "1234567890", "token_uri": uri}

    def authorize(self, address: str, account: str = "anna@example.com", refuse: bool = False) -> str:
        """What Google's consent page does: checks the link, and returns the address that it sends the browser to."""
        url, query = urlparse(address), {key: values[0] for key, values in parse_qs(urlparse(address).query).items()}
        wanted = {"response_type": "code", "access_type": "offline", "client_id": CLIENT["client_id"]}
        if url.netloc != "accounts.google.com" or any(query.get(key) != value for key, value in wanted.items()):
            self.errors.append(f"wrong consent link {address}")
        if not re.match(r"http://(localhost|127\.0\.0\.1)(:\d+)?/?$", query["redirect_uri"]):
            self.errors.append(f"wrong redirect {query['redirect_uri']}")
        if refuse:
            return f"{query['redirect_uri']}?error=access_denied"
        code = f"4/{self.new_id()}"
        self.codes[code] = account, query["redirect_uri"]
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'scope': query['scope']})}"

    # What the handler calls

    def new_id(self) -> str:
        with self.lock:
            return uuid.UUID(int=self.random.getrandbits(128)).hex[:28]

    def now(self) -> str:
        return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def role(self, item: DriveItem, account: str) -> str | None:
        """What an account may do with an item: owner, writer, reader or nothing."""
        while item:
            if account in item.roles:
                return item.roles[account]
            item = self.items.get(item.parent or "")
        return None

    def is_trashed(self, item: DriveItem) -> bool:
        """In the trash itself or by a folder above it."""
        while item:
            if item.trashed:
                return True
            item = self.items.get(item.parent or "")
        return False

    def find(self, id: str, account: str, writes: bool = False) -> DriveItem:
        item = self.items.get(id)
        role = item and self.role(item, account)
        if not role:
            raise ErrorResponse(404, "notFound", f"File not found: {id}")
        if writes and role not in WRITERS:
            raise ErrorResponse(403, "insufficientFilePermissions", "The user does not have sufficient permissions")
        return item

    def find_removable(self, id: str, account: str) -> DriveItem:
        """An item that an account may remove: outside of shared drives its owner alone."""
        item = self.find(id, account, writes=True)
        if not item.drive and item.owner != account:
            raise ErrorResponse(403, "insufficientFilePermissions", "The user does not have sufficient permissions")
        return item

    def used_bytes(self, account: str, trashed: bool | None = None) -> int:
        """Bytes that an account owns outside of shared drives; the trash counts."""
        items = [item for item in self.items.values() if item.owner == account and not item.drive]
        return sum(len(item.data) for item in items if trashed is None or item.trashed is trashed)

    def check_quota(self, item: DriveItem, size: int) -> None:
        if item.drive:
            return
        if item.owner in self.services:
            raise ErrorResponse(403, "storageQuotaExceeded", "Service Accounts do not have storage quota.")
        if item.owner in self.quotas and self.used_bytes(item.owner) + size > self.quotas[item.owner]:
            raise ErrorResponse(403, "storageQuotaExceeded", "The user's Drive storage quota has been exceeded.")

    def new_token(self, account: str) -> dict:
        token = f"ya29.{self.new_id()}"
        self.tokens[token] = account
        return {"access_token": token, "expires_in": 3599, "token_type": "Bearer", "scope": SCOPE}

    def handle_error(self, request, client_address) -> None:
        error = traceback.format_exc()
        if not re.search(r"(ConnectionReset|BrokenPipe|ConnectionAborted|SSL\w*|Timeout)Error", error):
            self.errors.append(error)


class FaultScript:
    """Faults in the order given, each at the first operation in which it can be injected."""

    def __init__(self, faults: list[str]):
        assert set(faults) <= set(FAULTS)
        self.left, self.lock = list(faults), threading.Lock()

    def __call__(self, operation: str) -> str | None:
        with self.lock:
            for fault in self.left:
                if operation in FAULTS[fault]:
                    self.left.remove(fault)
                    return fault
        return None


class ConnectionCut(Exception):
    """Close the connection without another word."""


class DriveHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Drive

    def do_CONNECT(self) -> None:
        host, _, port = self.path.partition(":")
        if host not in GOOGLE_HOSTS or port != "443":
            self.server.errors.append(f"CONNECT {self.path}")
            self.send_error(403)
            return
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection, self.inside = False, True

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()
        self.connection.close()

    def do_GET(self) -> None:
        """Every method: find the operation, inject a fault or do it, and answer."""
        with suppress(AttributeError):  # Linux: the client holds the body back until the headers are acknowledged
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        if self.path.startswith("/o/oauth2/auth?"):  # a browser of a test, which comes without TLS
            address = self.server.authorize(f"https://accounts.google.com{self.path}")
            return self.answer(302, b"", headers={"Location": address})
        url = urlparse(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        method = self.command
        if method == "POST" and self.headers.get("x-http-method-override") == "GET":
            method = "GET"
            query = {key: values[-1] for key, values in parse_qs(self.body().decode()).items()}
        try:
            operation, values = self.route(method, url.path, query)
            with self.server.lock:
                self.server.operations.append(operation)
            self.inject(operation, lambda: getattr(self, operation)(query=query, **values))
        except ErrorResponse as error:
            self.answer_error(error)
        except ConnectionCut:
            self.close_connection = True
        return None

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def route(self, method: str, path: str, query: dict) -> tuple[str, dict]:
        """The operation and what its path names; unknown ones and unknown parameters are noted."""
        for verb, pattern, operation, allowed in API_ROUTES:
            match = re.fullmatch(pattern, path)
            if verb == method and match and getattr(self, "inside", False):
                if unknown := set(query) - COMMON_PARAMETERS - set(allowed.split()):
                    raise self.unknown_request(f"{method} {path} with unknown {sorted(unknown)}")
                if operation == "get" and query.get("alt") == "media":
                    operation = "download"
                return operation, {key: value for key, value in match.groupdict().items() if value}
        raise self.unknown_request(f"unknown request {method} {path}")

    def unknown_request(self, message: str) -> ErrorResponse:
        self.server.errors.append(message)
        return ErrorResponse(400, "badRequest", message)

    def inject(self, operation: str, work: Callable[[], None]) -> None:
        """Do the work, or what a fault makes of it."""
        self.fault = self.server.script(operation)
        if self.fault:
            self.server.injected.append(self.fault)
        if self.fault in ("429", "503"):
            self.body()
            raise ErrorResponse(int(self.fault), {"429": "rateLimitExceeded", "503": "backendError"}[self.fault])
        if self.fault == "500 with HTML":
            self.body()
            self.answer(500, b"<html><title>Error 500 (Server Error)!!1</title></html>", "text/html")
        elif self.fault == "silence":
            self.body()
            with suppress(OSError):
                self.rfile.read(1)  # until the client gives up
            raise ConnectionCut
        elif self.fault == "quota reached":
            raise ErrorResponse(403, "storageQuotaExceeded", "The user's Drive storage quota has been exceeded.")
        else:
            if self.fault == "token expiry":
                self.server.tokens.pop(self.bearer(), None)
            work()

    # Operations

    def token(self, query: dict) -> None:
        form = {key: values[0] for key, values in parse_qs(self.body().decode()).items()}
        grants = {
            "refresh_token": self.refresh,
            "authorization_code": self.exchange,
            "urn:ietf:params:oauth:grant-type:jwt-bearer": self.by_assertion,
        }
        grant = grants.get(form.get("grant_type"))
        if not grant:
            raise self.unknown_request(f"grant {form.get('grant_type')}")
        status, reply = grant(form)
        self.answer_json(reply, status)

    def refresh(self, form: dict) -> tuple[int, dict]:
        if refused := check_client(form):
            return refused
        if form["refresh_token"] not in self.server.refresh_tokens:
            return 400, oauth_error("invalid_grant", "Token has been expired or revoked.")
        return 200, self.server.new_token(self.server.refresh_tokens[form["refresh_token"]])

    def exchange(self, form: dict) -> tuple[int, dict]:
        if refused := check_client(form):
            return refused
        account, redirect = self.server.codes.pop(form["code"], (None, None))
        if not account or redirect != form.get("redirect_uri"):
            return 400, oauth_error("invalid_grant", "Malformed auth code.")
        refresh = f"1//{self.server.new_id()}"
        self.server.refresh_tokens[refresh] = account
        ends = {"refresh_token_expires_in": 604799} if self.server.testing else {}
        return 200, self.server.new_token(account) | {"refresh_token": refresh} | ends

    def by_assertion(self, form: dict) -> tuple[int, dict]:
        """A service account's token, for a claim that it signed."""
        signed, _, signature = form["assertion"].rpartition(".")
        claim = json.loads(decode64(signed.partition(".")[2]))
        key = self.server.services.get(claim["iss"])
        if not key:
            return 400, oauth_error("invalid_grant", "Invalid grant: account not found")
        try:
            key.verify(decode64(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return 400, oauth_error("invalid_grant", "Invalid JWT Signature.")
        if claim["aud"] != "https://oauth2.googleapis.com/token" or SCOPE not in claim["scope"].split():
            raise self.unknown_request(f"claim {claim}")
        return 200, self.server.new_token(claim["iss"])

    def about(self, query: dict) -> None:
        drive, account = self.server, self.account()
        known = {"user": {"emailAddress": account}, "quotaType": "LIMITED" if account in drive.quotas else "UNLIMITED"}
        numbers = {
            "quotaBytesTotal": drive.quotas.get(account, 0),
            "quotaBytesUsed": drive.used_bytes(account),
            "quotaBytesUsedAggregate": drive.used_bytes(account),
            "quotaBytesUsedInTrash": drive.used_bytes(account, trashed=True),
        }
        self.answer_json(self.selected(known | {key: str(value) for key, value in numbers.items()}, query))

    def list(self, query: dict) -> None:
        account = self.account()
        try:
            wanted = Query(query.get("q", ""))
        except QueryError as error:
            raise self.unknown_request(f"q: {error}") from None
        for parent in wanted.parents:
            item = self.server.find(parent, account)
            if item.drive and (query.get("driveId"), query.get("corpora")) != (item.drive, "drive"):
                raise self.unknown_request(f"list of shared drive {item.drive} by {query}")
            if item.drive and not query.get("supportsAllDrives") == query.get("includeItemsFromAllDrives") == "true":
                raise self.unknown_request("list of a shared drive without the flags for it")
        with self.server.lock:
            held = sorted(self.server.items.items())
        found = [item.resource() | {"labels": {"trashed": self.server.is_trashed(item)}} for _, item in held]
        found = [item for item in found if wanted.matches(item)]
        found = [item for item in found if self.server.role(self.server.items[item["id"]], account)]
        self.answer_page(found, query)

    def answer_page(self, found: list, query: dict) -> None:
        mark = hashlib.md5(query["q"].encode()).hexdigest()
        start = 0
        if "pageToken" in query:
            owner, _, start = query["pageToken"].rpartition(".")
            if owner != mark:
                raise self.unknown_request("a page token of another query")
        end = int(start) + min(int(query.get("maxResults", 100)), self.server.page_size)
        reply = {"kind": "drive#fileList", "items": found[int(start) : end]}
        if end < len(found):
            reply["nextPageToken"] = f"{mark}.{end}"
        self.answer_json(self.selected(reply, query))

    def get(self, query: dict, id: str) -> None:
        account = self.account()
        item = self.find_visible(id, account, query)
        rights = self.server.role(item, account) in WRITERS
        known = {"editable": rights, "capabilities": {"canAddChildren": rights and item.mime == FOLDER_MIME}}
        self.answer_json(self.selected(item.resource() | known, query))

    def download(self, query: dict, id: str) -> None:
        item = self.find_visible(id, self.account(), query)
        total = len(item.data)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", f"bytes=0-{total}"))
        first, last = int(match[1]), min(int(match[2]), total - 1)
        if first >= total:
            self.answer(416, b"", headers={"Content-Range": f"bytes */{total}"})
            return
        data = item.data[first : last + 1]
        if self.fault == "flipped byte":
            data = data[:-1] + bytes([data[-1] ^ 1])
        partial = "Range" in self.headers
        headers = {"Content-Range": f"bytes {first}-{last}/{total}"} if partial else {}
        cut = len(data) // 2 if self.fault == "cut download" else None
        self.answer(206 if partial else 200, data, "application/octet-stream", headers, cut)
        if cut is not None:
            raise ConnectionCut

    def insert(self, query: dict) -> None:
        """A folder; files come by ``start``."""
        item = self.new_item(query, json.loads(self.body()))
        if item.mime != FOLDER_MIME:
            raise self.unknown_request("a file without content")
        self.complete(item)

    def new_item(self, query: dict, body: dict) -> DriveItem:
        if unknown := set(body) - {"title", "parents", "mimeType"}:
            raise self.unknown_request(f"unknown {sorted(unknown)} in a new file")
        account, (parent,) = self.account(), body["parents"]
        above = self.server.find(parent["id"], account, writes=True)
        if above.drive and query.get("supportsAllDrives") != "true":
            raise ErrorResponse(404, "notFound", f"File not found: {above.id}")
        mime = body.get("mimeType", "application/octet-stream")
        return DriveItem(self.server.new_id(), body["title"], above.id, mime, account, drive=above.drive)

    def complete(self, item: DriveItem) -> None:
        """Make a complete item appear, and say so unless a fault forbids it."""
        with self.server.lock:
            item.created = self.server.now()
            self.server.items[item.id] = item
        if self.fault == "stored then 503":
            raise ErrorResponse(503, "backendError")
        if self.fault == "stored then cut":
            raise ConnectionCut
        self.answer_json(item.resource())

    def start(self, query: dict) -> None:
        if query.get("uploadType") != "resumable":
            raise self.unknown_request(f"upload {query}")
        item, size = self.new_item(query, json.loads(self.body())), int(self.headers["X-Upload-Content-Length"])
        self.server.check_quota(item, size)
        session = self.server.new_id()
        self.server.uploads[session] = Upload(item, size)
        address = f"https://www.googleapis.com/upload/drive/v2/files?uploadType=resumable&upload_id={session}"
        self.answer(200, b"", headers={"Location": address})

    def put(self, query: dict) -> None:
        """A chunk, or the question how much has arrived (``bytes */total``)."""
        upload, account = self.server.uploads.get(query["upload_id"]), self.account()
        if not upload or upload.item.owner != account:
            raise ErrorResponse(404, "notFound", "no such upload session")
        asked = self.headers.get("Content-Range", "bytes 0--1/0")
        match = re.fullmatch(r"bytes (?:\*|(\d+)-(-?\d+))/(\d+)", asked)
        if not match or int(match[3]) != upload.size:
            raise self.unknown_request(f"Content-Range {asked} for {upload.size} bytes")
        body = self.receive(upload)
        if match[1] and not upload.done:
            if int(match[1]) > len(upload.received) or int(match[2]) - int(match[1]) + 1 != len(body):
                raise self.unknown_request(f"Content-Range {asked} after {len(upload.received)} bytes with {len(body)}")
            if len(body) % UPLOAD_UNIT and int(match[2]) + 1 != upload.size:
                raise self.unknown_request(f"a chunk of {len(body)} bytes")
            upload.received += body[len(upload.received) - int(match[1]) :]  # what it has already it passes over
        if len(upload.received) < upload.size:
            held = {"Range": f"bytes=0-{len(upload.received) - 1}"} if upload.received else {}
            self.answer(308, b"", headers=held)
        elif upload.done:
            self.answer_json(upload.item.resource())
        else:
            self.server.check_quota(upload.item, upload.size)
            upload.done, upload.item.data = True, bytes(upload.received)
            self.complete(upload.item)

    def receive(self, upload: Upload) -> bytes:
        """A chunk's body, unless a fault comes in the middle; whole units that arrived are kept."""
        length = int(self.headers.get("Content-Length", 0))
        self.server.received.append(length)
        if self.fault == "reset mid-upload":
            upload.received += self.rfile.read(length // 2)[: length // 2 // UPLOAD_UNIT * UPLOAD_UNIT]
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise ConnectionCut
        body = self.body()
        if self.fault == "cut without reply":
            raise ConnectionCut
        return body

    def trash(self, query: dict, id: str) -> None:
        item = self.server.find_removable(self.find_visible(id, self.account(), query).id, self.account())
        item.trashed = True
        self.answer_json(item.resource())

    def delete(self, query: dict, id: str) -> None:
        item = self.server.find_removable(self.find_visible(id, self.account(), query).id, self.account())
        with self.server.lock:
            self.server.items.pop(item.id, None)
        self.answer(204, b"")

    # Parts of a request and of an answer

    def find_visible(self, id: str, account: str, query: dict) -> DriveItem:
        item = self.server.find(id, account)
        if item.drive and query.get("supportsAllDrives") != "true" and query.get("alt") != "media":
            raise ErrorResponse(404, "notFound", f"File not found: {id}")
        return item

    def bearer(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def account(self) -> str:
        account = self.server.tokens.get(self.bearer())
        if not account:
            self.body()
            raise ErrorResponse(401, "authError", "Invalid Credentials")
        if not self.server.api_enabled:
            raise ErrorResponse(
                403, "accessNotConfigured", "Google Drive API has not been used in project 1 or is disabled."
            )
        return account

    def selected(self, resource: dict, query: dict) -> dict:
        try:
            return select_fields(resource, query.get("fields"))
        except KeyError as error:
            raise self.unknown_request(f"unknown field {error}") from None

    def body(self) -> bytes:
        """What came with the request, once."""
        length = int(self.headers.get("Content-Length", 0))
        del self.headers["Content-Length"]
        return self.rfile.read(length)

    def answer_error(self, error: ErrorResponse) -> None:
        reason = {"domain": "global", "reason": error.reason, "message": str(error)}
        self.body()
        self.answer_json({"error": {"code": error.status, "message": str(error), "errors": [reason]}}, error.status)

    def answer_json(self, content: dict, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), "application/json; charset=UTF-8")

    def answer(
        self, status: int, body: bytes, kind: str = "", headers: dict | None = None, cut: int | None = None
    ) -> None:
        """Send an answer; with ``cut`` only so many bytes of its body."""
        self.send_response(status)
        kind = {"Content-Type": kind} if kind else {}
        for name, value in ({"Content-Length": str(len(body))} | kind | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *_) -> None:
        """Tests read ``operations`` instead."""


def check_client(form: dict) -> tuple[int, dict] | None:
    if {key: form.get(key) for key in CLIENT} == CLIENT:
        return None
    return 401, oauth_error("invalid_client", "The provided client secret is invalid.")


def oauth_error(error: str, description: str) -> dict:
    return {"error": error, "error_description": description}


def decode64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@contextmanager
def serve_drive(folder: Path) -> Iterator[Drive]:
    """Serve a Drive until the block ends; its certificates lie in the folder."""
    with Drive(folder) as drive:
        thread = threading.Thread(target=drive.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield drive
        finally:
            drive.shutdown()
            thread.join()

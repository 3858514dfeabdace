"""Where pushed objects are stored: on any DVC remote, or on Google Drive. Each store judges its own errors.

Everything goes through what DVC's own remote holds. For Drive that is the signed-in Google client inside it; its
requests are made one by one, for PyDrive2's ready-made calls tell neither ids nor dates, start an interrupted transfer
from byte 0, and wait for ever where a connection dies.
"""

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.versioning.remotes import bound_waiting
from tools.drive.google import check_proxy, judge_error
from tools.drive.retry import Fault, RemoteError, RetryPolicy, Returned, judge_connection

if TYPE_CHECKING:
    from dvc.data_cloud import Remote
    from dvc.repo import Repo
    from httplib2 import Http

FOLDER_MIME = "application/vnd.google-apps.folder"
CHUNK_BYTES = 32 * 2**20  # of a request; held in memory, so that it can be sent again; a multiple of 256 KiB
MAX_PARENTS = 50  # folders asked for in one query; Drive refuses very long ones
LIST_FIELDS = "nextPageToken,items(id,title,md5Checksum,fileSize,createdDate,mimeType,parents/id)"
BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)  # in our own code
Advance = Callable[[int], object]  # told the bytes that were transferred


@dataclass(frozen=True, order=True)
class RemoteObject:
    """An object as a remote lists it; several of one name sort from the oldest on, the same for everybody."""

    created: str
    id: str
    oid: str
    size: int
    md5: str | None = None  # None where a remote lists no checksums

    @property
    def is_valid(self) -> bool:
        """An object's name is its checksum; that of a folder's list ends in .dir."""
        return self.md5 in (None, self.oid.removesuffix(".dir"))


Listing = dict[str, list[RemoteObject]]  # by oid, the oldest first


def is_stored(listing: Listing, oid: str) -> bool:
    return oldest_valid(listing.get(oid, [])) is not None


def oldest_valid(objects: list[RemoteObject]) -> RemoteObject | None:
    """The oldest object with the right checksum, ties by id."""
    return next((item for item in sorted(objects) if item.is_valid), None)


@dataclass(frozen=True)
class Quota:
    """An account's storage in bytes; what is in the trash is part of what is used."""

    total: int
    used: int
    trash: int

    @property
    def free(self) -> int:
        return max(0, self.total - self.used)


class Store:
    """Any remote that DVC knows; tries again what is transient, and raises RemoteError where that does not help."""

    def __init__(self, remote: "Remote", policy: RetryPolicy):
        self.remote, self.odb, self.policy = remote, remote.odb, policy
        self.url = remote.fs.unstrip_protocol(remote.path)
        socket.setdefaulttimeout(policy.timeout)  # PyDrive2, for one, asks for tokens without a timeout

    def judge(self, error: Exception) -> Fault | None:
        """What an error of this remote means; None for a bug of our own."""
        fault = judge_connection(error)
        if fault or isinstance(error, BUGS):
            return fault
        return Fault(f"the remote failed ({type(error).__name__}: {error})", transient=True)  # its library's own type

    def with_retries(self, request: Callable[[], Returned]) -> Returned:
        return self.policy.call(request, self.judge)

    def listing(self) -> Listing:
        """Every object by its name, those of one name from the oldest on."""
        found = self.with_retries(lambda: self.file_sizes(self.odb.path))
        depth = len(self.odb.fs.parts(self.odb.path)) + 2
        complete = {path: size for path, size in found.items() if len(self.odb.fs.parts(path)) == depth}
        return group_by_oid(RemoteObject("", path, self.odb.path_to_oid(path), size) for path, size in complete.items())

    def put(self, path: Path, oid: str, advance: Advance) -> None:
        """Upload a file."""
        from dvc_objects.fs import localfs

        self.with_retries(lambda: self.odb.add(os.fspath(path), localfs, oid, check_exists=False))
        advance(path.stat().st_size)

    def get(self, item: RemoteObject, path: Path, advance: Advance) -> None:
        """Download an object to a file."""
        self.with_retries(lambda: self.odb.fs.get_file(self.odb.oid_to_path(item.oid), os.fspath(path)))
        advance(item.size)

    def remove(self, item: RemoteObject) -> None:
        """Remove one of several objects of one name."""
        raise AssertionError("a remote with unique names has no duplicates")

    def quota(self) -> Quota | None:
        """What the account may store; None where there is no limit, or none that one could ask for."""
        return None

    def folder_size(self, name: str) -> int:
        """Bytes in a folder beside DVC's objects."""
        return sum(self.with_retries(lambda: self.file_sizes(self.odb.fs.join(self.remote.path, name))).values())

    def file_sizes(self, path: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path."""
        try:
            if self.odb.fs.protocol == "local":
                return {name: Path(name).stat().st_size for name in self.odb.fs.find(path)}
            found = self.odb.fs.fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        return {info["name"]: info["size"] for info in found.values() if info["type"] == "file"}


class DriveStore(Store):
    """Google Drive, where a title is no key: two objects, or two folders, may have the same. Signs in when made."""

    def __init__(self, remote: "Remote", policy: RetryPolicy):
        check_proxy()
        super().__init__(remote, policy)
        self.with_retries(lambda: bound_waiting(remote.fs, policy.timeout))  # the first look at it signs in
        files = remote.fs.fs
        self.auth = files.client.auth
        if not self.auth.service:
            self.with_retries(self.auth.Authorize)
        self.files, self.http = self.auth.service.files(), self.auth.Get_Http_Object()
        self.root_id = files.root
        self.objects_path = (*files.base.split("/"), "files", "md5") if files.base else ("files", "md5")
        self.folder_ids: dict[tuple[str, ...], list[str]] = {(): [self.root_id]}  # by path, the oldest first
        root = self.find_root()
        self.writable: bool = root["capabilities"]["canAddChildren"]
        self.shared_drive: str | None = root.get("driveId")  # its id, where the folder is on one

    def judge(self, error: Exception) -> Fault | None:
        return judge_error(error)

    def with_connection(self, request: "Callable[[Http], Returned]") -> Returned:
        """Make a request over the connection, and again over a new one where it broke.

        A late response to one request must not be taken for that to another.
        """
        from googleapiclient.errors import HttpError

        def attempt() -> Returned:
            try:
                return request(self.http)
            except HttpError:
                raise
            except Exception:
                self.http = self.auth.Get_Http_Object()
                raise

        return self.with_retries(attempt)

    def execute(self, request: Any) -> Any:
        """The JSON response to one of googleapiclient's requests."""
        return self.with_connection(lambda http: request.execute(http=http))

    def find_root(self) -> dict[str, Any]:
        """The remote's folder as Drive describes it; raises RemoteError where there is none for this account."""
        fields = "driveId,mimeType,capabilities/canAddChildren"
        try:
            root = self.execute(self.files.get(fileId=self.root_id, supportsAllDrives=True, fields=fields))
        except RemoteError as error:
            if error.fault.not_found:
                message = f"{self.account()} cannot see the folder {self.root_id}: check the link, and have its owner"
                raise RemoteError(Fault(f"{message} share it with that account as Editor")) from None
            raise
        if root["mimeType"] != FOLDER_MIME:
            raise RemoteError(Fault(f"{self.root_id} is a file: give the link of a folder"))
        return root

    @property
    def is_service_account(self) -> bool:
        """Signed in as a service account that acts for nobody else."""
        config = self.remote.config
        return bool(config.get("gdrive_use_service_account") and not config.get("gdrive_service_account_user_email"))

    def account(self) -> str:
        """The e-mail address that is signed in."""
        return self.about("user/emailAddress")["user"]["emailAddress"]

    def about(self, fields: str) -> dict[str, Any]:
        return self.execute(self.auth.service.about().get(fields=fields))

    def quota(self) -> Quota | None:
        names = ("quotaBytesTotal", "quotaBytesUsedAggregate", "quotaBytesUsedInTrash")
        if self.shared_drive:
            return None  # its organisation's storage, which Drive does not tell
        about = self.about(",".join(("quotaType", *names)))
        return Quota(*(int(about[name]) for name in names)) if about["quotaType"] == "LIMITED" else None

    def listing(self) -> Listing:
        path = self.objects_path
        self.folder_ids = {(): [self.root_id]}
        for depth, name in enumerate(path):
            found = self.list_children(self.folder_ids[path[:depth]], name)
            self.folder_ids[path[: depth + 1]] = folders_named(found, name)
        prefixes = self.list_children(self.folder_ids[path])
        names = {
            item["id"]: item["title"]
            for item in prefixes
            if item["mimeType"] == FOLDER_MIME and len(item["title"]) == 2
        }
        for name in set(names.values()):
            self.folder_ids[(*path, name)] = folders_named(prefixes, name)
        files = [item for item in self.list_children(list(names)) if "md5Checksum" in item]
        return group_by_oid(as_remote_object(item, names) for item in files)

    def folder_size(self, name: str) -> int:
        above = self.folder_ids.get(self.objects_path[:-2], [])
        parents = folders_named(self.list_children(above, name), name)
        total = 0
        while parents:
            found = self.list_children(parents)
            total += sum(int(item.get("fileSize", 0)) for item in found)
            parents = [item["id"] for item in found if item["mimeType"] == FOLDER_MIME]
        return total

    def list_children(self, parents: list[str], title: str | None = None) -> list[dict[str, Any]]:
        """What is in these folders and not in the trash; with a title what has it, whatever its case."""
        options: dict[str, Any] = {"maxResults": 1000, "fields": LIST_FIELDS}
        options |= {"supportsAllDrives": True, "includeItemsFromAllDrives": True}
        if self.shared_drive:
            options |= {"corpora": "drive", "driveId": self.shared_drive}
        condition = "" if title is None else f" and title='{escape_query(title)}'"
        found: list[dict[str, Any]] = []
        for start in range(0, len(parents), MAX_PARENTS):
            within = " or ".join(f"'{parent}' in parents" for parent in parents[start : start + MAX_PARENTS])
            query: dict[str, str] = {"q": f"({within}) and trashed=false{condition}"}
            while True:
                response = self.execute(self.files.list(**options, **query))
                found += response["items"]
                if "nextPageToken" not in response:
                    break
                query["pageToken"] = response["nextPageToken"]
        return found

    def ensure_folder(self, path: tuple[str, ...]) -> str:
        """The id of a folder below the root, created if it is missing. Two of them by two clones do no harm."""
        if not self.folder_ids.get(path):
            self.folder_ids[path] = [self.create_folder(self.ensure_folder(path[:-1]), path[-1])]
        return self.folder_ids[path][0]

    def create_folder(self, parent: str, name: str) -> str:
        """Create a folder; before another try, look whether the last one succeeded although its response was lost."""
        body = {"title": name, "mimeType": FOLDER_MIME, "parents": [{"id": parent}]}
        request = self.files.insert(body=body, supportsAllDrives=True)
        tried = False

        def attempt(http: "Http") -> str:
            nonlocal tried
            if tried and (created := folders_named(self.list_children([parent], name), name)):
                return created[0]
            tried = True
            return request.execute(http=http)["id"]

        return self.with_connection(attempt)

    def put(self, path: Path, oid: str, advance: Advance) -> None:
        """Upload in chunks; after a fault Drive is asked how much it has, and the rest follows."""
        from googleapiclient.http import MediaIoBaseUpload

        class ChunkedUpload(MediaIoBaseUpload):
            def has_stream(self) -> bool:
                return False  # bytes can be sent again; a stream that httplib2 sends again is empty, and all wait

        parent = self.ensure_folder((*self.objects_path, oid[:2]))
        with path.open("rb") as file:
            media = ChunkedUpload(file, "application/octet-stream", chunksize=CHUNK_BYTES, resumable=True)
            body = {"title": oid[2:], "parents": [{"id": parent}]}
            request = self.files.insert(body=body, media_body=media, supportsAllDrives=True)
            done, sent = None, 0
            while done is None:
                status, done = self.with_connection(lambda http: request.next_chunk(http=http))
                arrived = media.size() if done else status.resumable_progress
                advance(arrived - sent)
                sent = arrived

    def get(self, item: RemoteObject, path: Path, advance: Advance) -> None:
        """Download in chunks; after a fault it goes on where it was."""
        from googleapiclient.http import MediaIoBaseDownload

        request = self.files.get_media(fileId=item.id, supportsAllDrives=True)
        with path.open("wb") as file:
            download = MediaIoBaseDownload(file, request, chunksize=CHUNK_BYTES)

            def next_chunk(http: "Http") -> Any:
                request.http = http
                return download.next_chunk()

            done = False
            while not done:
                before = file.tell()
                _, done = self.with_connection(next_chunk)
                advance(file.tell() - before)

    def remove(self, item: RemoteObject) -> None:
        """To the trash, or for good where the remote is set up so; what somebody else removed is no fault."""
        method = self.files.trash if self.remote.config.get("gdrive_trash_only") else self.files.delete
        try:
            self.execute(method(fileId=item.id, supportsAllDrives=True))
        except RemoteError as error:
            if not error.fault.not_found:
                raise


def open_store(repo: "Repo", name: str | None, policy: RetryPolicy) -> Store:
    """The remote of this name, or the default one; a Drive signed in and its folder checked."""
    remote = repo.cloud.get_remote(name, "push")
    return (DriveStore if remote.fs.protocol == "gdrive" else Store)(remote, policy)


def group_by_oid(objects: Iterable[RemoteObject]) -> Listing:
    listing = defaultdict(list)
    for item in sorted(objects):
        listing[item.oid].append(item)
    return dict(listing)


def as_remote_object(item: dict[str, Any], folder_names: dict[str, str]) -> RemoteObject:
    """A file below one of these folders, given by id; a folder's name is the first two characters of its objects'."""
    prefix = next(folder_names[parent["id"]] for parent in item["parents"] if parent["id"] in folder_names)
    oid, size = prefix + item["title"], int(item["fileSize"])
    return RemoteObject(item["createdDate"], item["id"], oid, size, item["md5Checksum"])


def folders_named(items: list[dict[str, Any]], name: str) -> list[str]:
    """Ids of the folders with this very name, the oldest first; Drive's own search ignores case."""
    found = [item for item in items if item["title"] == name and item["mimeType"] == FOLDER_MIME]
    return [item["id"] for item in sorted(found, key=lambda item: (item["createdDate"], item["id"]))]


def escape_query(text: str) -> str:
    """A text as it stands between the quotes of a query."""
    return text.replace("\\", "\\\\").replace("'", "\\'")

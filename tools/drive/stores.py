"""Where pushed objects lie: any DVC remote, and Google Drive with what it alone can tell.

Everything goes through what DVC's own remote holds. For Drive that is the signed-in Google client inside it; its
requests are made one by one, for PyDrive2's ready-made calls tell neither ids nor dates, start a cut transfer from
byte 0, and wait for ever where a connection dies.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.drive.google import Failed, Patience, Trouble

if TYPE_CHECKING:
    from dvc.data_cloud import Remote

FOLDER = "application/vnd.google-apps.folder"
CHUNK = 32 * 2**20  # bytes a request; held in memory, so that a request can be repeated; a multiple of 256 KiB
PARENTS = 50  # folders asked for in one query; Drive refuses very long ones
FIELDS = "nextPageToken,items(id,title,md5Checksum,fileSize,createdDate,mimeType,parents/id)"
SHARE = "check the link, and have its owner share it with that account as Editor"
MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)  # in our own code
Progress = Callable[[int], object]  # told the bytes that went over


@dataclass(frozen=True, order=True)
class Copy:
    """An object as a remote lists it; copies of one object sort from the oldest on, the same for everybody."""

    created: str
    id: str
    oid: str
    size: int
    md5: str | None = None  # None where a remote lists no checksums

    @property
    def right(self) -> bool:
        """An object's name is its checksum; that of a folder's list ends in .dir."""
        return self.md5 in (None, self.oid.removesuffix(".dir"))


@dataclass(frozen=True)
class Room:
    """An account's storage in bytes; what lies in the trash is part of what is used."""

    total: int
    used: int
    trash: int

    @property
    def free(self) -> int:
        return max(0, self.total - self.used)


Listing = dict[str, list[Copy]]


class Store:
    """Any remote that DVC knows; tries again what may pass, and raises Failed where it does not."""

    def __init__(self, remote: "Remote", patience: Patience):
        self.remote, self.odb, self.patience = remote, remote.odb, patience
        self.where = remote.fs.unstrip_protocol(remote.path)

    def listing(self) -> Listing:
        """Every object by its name, its copies from the oldest on."""
        found = self.ask(lambda: self.sizes(self.odb.path))
        depth = len(self.odb.fs.parts(self.odb.path)) + 2
        whole = {path: size for path, size in found.items() if len(self.odb.fs.parts(path)) == depth}
        return by_oid(Copy("", path, self.odb.path_to_oid(path), size) for path, size in whole.items())

    def put(self, path: Path, oid: str, progress: Progress) -> None:
        from dvc_objects.fs import localfs

        self.ask(lambda: self.odb.add(os.fspath(path), localfs, oid, check_exists=False))
        progress(path.stat().st_size)

    def get(self, copy: Copy, path: Path, progress: Progress) -> None:
        self.ask(lambda: self.odb.fs.get_file(self.odb.oid_to_path(copy.oid), os.fspath(path)))
        progress(copy.size)

    def remove(self, copy: Copy) -> None:
        raise AssertionError("a remote with unique names has no double objects")

    def room(self) -> Room | None:
        """What the account may store; None where there is no limit that one could ask for."""
        return None

    def beside(self, name: str) -> int:
        """Bytes in a folder beside DVC's objects."""
        return sum(self.ask(lambda: self.sizes(self.odb.fs.join(self.remote.path, name))).values())

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path."""
        try:
            if self.odb.fs.protocol == "local":
                return {name: Path(name).stat().st_size for name in self.odb.fs.find(path)}
            found = self.odb.fs.fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        return {info["name"]: info["size"] for info in found.values() if info["type"] == "file"}

    def ask(self, work: Callable):
        def attempt():
            try:
                return work()
            except (OSError, *MISTAKES):
                raise
            except Exception as error:  # every kind of remote has its own
                raise OSError(str(error)) from error

        return self.patience.call(attempt)


class DriveStore(Store):
    """Google Drive, where a title is no key: two objects, or two folders, may have the same."""

    def __init__(self, remote: "Remote", patience: Patience, timeout: float):
        super().__init__(remote, patience)
        files = patience.call(lambda: remote.fs.fs)  # signs in
        self.auth = files.client.auth
        self.auth.http_timeout = timeout
        if not self.auth.service:
            patience.call(self.auth.Authorize)
        self.files, self.http = self.auth.service.files(), self.auth.Get_Http_Object()
        self.top, self.way = files.root, [*files.base.split("/"), "files", "md5"] if files.base else ["files", "md5"]
        self.folders: dict[tuple[str, ...], list[str]] = {(): [self.top]}  # ids by path, the oldest first
        self.drive = self.look_at_top()

    def look_at_top(self) -> str | None:
        """Check the folder, and note whether it can be written; returns the id of the shared drive it is in, if any."""
        fields = "driveId,mimeType,capabilities/canAddChildren"
        try:
            top = self.send(self.files.get(fileId=self.top, supportsAllDrives=True, fields=fields))
        except Failed as failed:
            if failed.trouble.gone:
                raise Failed(Trouble(f"folder {self.top} is not there for {self.account()}: {SHARE}")) from None
            raise
        if top["mimeType"] != FOLDER:
            raise Failed(Trouble(f"{self.top} is a file: give the link of a folder"))
        self.writable = top["capabilities"]["canAddChildren"]
        return top.get("driveId")

    @property
    def is_service(self) -> bool:
        """Signed in as a service account that acts for nobody else."""
        config = self.remote.config
        return bool(config.get("gdrive_use_service_account") and not config.get("gdrive_service_account_user_email"))

    def account(self) -> str:
        return self.about("user/emailAddress")["user"]["emailAddress"]

    def about(self, fields: str) -> dict:
        return self.send(self.auth.service.about().get(fields=fields))

    def room(self) -> Room | None:
        names = ("quotaBytesTotal", "quotaBytesUsedAggregate", "quotaBytesUsedInTrash")
        if self.drive:
            return None  # its organisation's storage, which Drive does not tell
        about = self.about(",".join(("quotaType", *names)))
        return Room(*(int(about[name]) for name in names)) if about["quotaType"] == "LIMITED" else None

    def listing(self) -> Listing:
        self.folders = {(): [self.top]}
        for depth, name in enumerate(self.way):
            found = self.children(self.folders[tuple(self.way[:depth])], f" and title='{quoted(name)}'")
            self.folders[tuple(self.way[: depth + 1])] = folders_named(found, name)
        prefixes = self.children(self.folders[tuple(self.way)])
        names = {
            item["id"]: item["title"] for item in prefixes if item["mimeType"] == FOLDER and len(item["title"]) == 2
        }
        for name in set(names.values()):
            self.folders[(*self.way, name)] = folders_named(prefixes, name)
        return by_oid(copy_of(item, names) for item in self.children(list(names)) if "md5Checksum" in item)

    def beside(self, name: str) -> int:
        base = tuple(self.way[:-2])
        parents = folders_named(self.children(self.folders.get(base, []), f" and title='{quoted(name)}'"), name)
        total = 0
        while parents:
            found = self.children(parents)
            total += sum(int(item.get("fileSize", 0)) for item in found)
            parents = [item["id"] for item in found if item["mimeType"] == FOLDER]
        return total

    def children(self, parents: list[str], condition: str = "") -> list[dict]:
        """What lies in folders and not in the trash."""
        flags = {"supportsAllDrives": True, "includeItemsFromAllDrives": True, "maxResults": 1000, "fields": FIELDS}
        if self.drive:
            flags |= {"corpora": "drive", "driveId": self.drive}
        found = []
        for start in range(0, len(parents), PARENTS):
            within = " or ".join(f"'{parent}' in parents" for parent in parents[start : start + PARENTS])
            query, page = f"({within}) and trashed=false{condition}", {}
            while page is not None:
                answer = self.send(self.files.list(q=query, **flags, **page))
                found += answer["items"]
                page = {"pageToken": answer["nextPageToken"]} if "nextPageToken" in answer else None
        return found

    def folder(self, path: tuple[str, ...]) -> str:
        """The id of a folder below the top, made where it is missing. Twice the same by two clones does no harm."""
        if not self.folders.get(path):
            parent, name = self.folder(path[:-1]), path[-1]
            body = {"title": name, "mimeType": FOLDER, "parents": [{"id": parent}]}
            self.folders[path] = [self.make(self.files.insert(body=body, supportsAllDrives=True), parent, name)]
        return self.folders[path][0]

    def make(self, request, parent: str, name: str) -> str:
        """Make a folder; before another try, look whether the first one arrived although it failed."""
        tried = False

        def attempt(http) -> str:
            nonlocal tried
            if tried and (made := folders_named(self.children([parent], f" and title='{quoted(name)}'"), name)):
                return made[0]
            tried = True
            return request.execute(http=http)["id"]

        return self.ask(attempt)

    def put(self, path: Path, oid: str, progress: Progress) -> None:
        """Upload in chunks; after a fault Drive is asked how much it has, and the rest follows."""
        from googleapiclient.http import MediaIoBaseUpload

        class Chunks(MediaIoBaseUpload):
            def has_stream(self) -> bool:
                return False  # bytes can be sent again; a stream that httplib2 sends again is empty, and all wait

        parent = self.folder((*self.way, oid[:2]))
        with path.open("rb") as file:
            media = Chunks(file, "application/octet-stream", chunksize=CHUNK, resumable=True)
            body = {"title": oid[2:], "parents": [{"id": parent}]}
            request = self.files.insert(body=body, media_body=media, supportsAllDrives=True)
            done, sent = None, 0
            while done is None:
                status, done = self.ask(lambda http: request.next_chunk(http=http))
                arrived = media.size() if done else status.resumable_progress
                progress(arrived - sent)
                sent = arrived

    def get(self, copy: Copy, path: Path, progress: Progress) -> None:
        """Download in chunks; after a fault it goes on where it was."""
        from googleapiclient.http import MediaIoBaseDownload

        request = self.files.get_media(fileId=copy.id, supportsAllDrives=True)
        with path.open("wb") as file:
            download = MediaIoBaseDownload(file, request, chunksize=CHUNK)

            def attempt(http):
                request.http = http
                return download.next_chunk()

            done = False
            while not done:
                before = file.tell()
                _, done = self.ask(attempt)
                progress(file.tell() - before)

    def remove(self, copy: Copy) -> None:
        """To the trash, or for good where the remote is set up so; what somebody else removed is no fault."""
        verb = self.files.trash if self.remote.config.get("gdrive_trash_only") else self.files.delete
        try:
            self.send(verb(fileId=copy.id, supportsAllDrives=True))
        except Failed as failed:
            if not failed.trouble.gone:
                raise

    def send(self, request):
        return self.ask(lambda http: request.execute(http=http))

    def ask(self, work: Callable):
        """Call work with a connection, and again with a new one where it broke: a late answer must not be another's."""
        from googleapiclient.errors import HttpError

        def attempt():
            try:
                return work(self.http)
            except HttpError:
                raise
            except Exception:
                self.http = self.auth.Get_Http_Object()
                raise

        return self.patience.call(attempt)


def by_oid(copies: Iterable[Copy]) -> Listing:
    listing = defaultdict(list)
    for copy in sorted(copies):
        listing[copy.oid].append(copy)
    return dict(listing)


def copy_of(item: dict, names: dict[str, str]) -> Copy:
    """A file below the folders whose names, the first two signs of what they hold, are given by id."""
    first = next(names[parent["id"]] for parent in item["parents"] if parent["id"] in names)
    return Copy(item["createdDate"], item["id"], first + item["title"], int(item["fileSize"]), item["md5Checksum"])


def folders_named(items: list[dict], name: str) -> list[str]:
    """Ids of the folders with this very name, the oldest first; Drive's own search ignores case."""
    found = [item for item in items if item["title"] == name and item["mimeType"] == FOLDER]
    return [item["id"] for item in sorted(found, key=lambda item: (item["createdDate"], item["id"]))]


def quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace("'", "\\'")

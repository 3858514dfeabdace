"""Common Voice from Mozilla Data Collective: fetched once for all clones, resumed after a cut, verified.

Its API is asked over ``requests``. The collective's own client, datacollective 0.7, compares neither size nor checksum,
appends whatever comes when it resumes, gives up at the first cut, and knows no lock and no renewed link.
"""

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests
import urllib3

from stages.corpora.local import data_folder
from stages.runtime.errors import UserError
from stages.runtime.files import file_digest
from stages.runtime.progress import ProgressBar, note

API_KEY, API_URL = "MDC_API_KEY", "MDC_API_URL"
NAME = "Mozilla Data Collective"
SITE = "https://mozilladatacollective.com"
TITLE = re.compile(r"Common Voice Scripted Speech (\d+\.\d+) - ")  # of its data sets, the language behind it
PAGE_SIZE = 100  # data sets that a listing gives at once, the API's largest
TIMEOUT = (10, 60)  # seconds to connect, and without a byte
BLOCK = 2**18  # bytes read at once, at most
WAITS = (1, 2, 4, 8, 16)  # seconds before another try, where the last ones brought nothing new
LINKS = 3  # that may be refused one after another, each of which counts against a daily limit


class CutError(Exception):
    """The connection ended, or the answer cannot be used; another try may help."""


class RefusedError(Exception):
    """A link that the storage does not take, or no longer."""


@dataclass(frozen=True)
class Offer:
    """What a request for a download gives: a link for some hours, the archive's bytes and, where known, its sha256."""

    url: str
    size: int
    sha256: str | None


def release_name(release: str, locale: str) -> str:
    """What the archive of a release is called in the data folder."""
    return f"cv-corpus-{release}-{locale}.tar.gz"


def find_release(release: str, locale: str) -> Path | None:
    """The archive of a release where the data folder has it, fetched or put there by hand; a delta is none."""
    target = data_folder() / release_name(release, locale)
    by_hand = re.compile(rf"cv-corpus-{re.escape(release)}-\d{{4}}-\d\d-\d\d-{re.escape(locale)}\.tar\.gz")
    others = sorted(path for path in target.parent.glob("cv-corpus-*.tar.gz") if by_hand.fullmatch(path.name))
    return target if target.is_file() else next(iter(others), None)


def fetch_release(release: str, locale: str) -> Path:
    """The archive of a release in a locale, from the data folder or into it; clones that ask at once fetch it once.

    release: as ``25.0``, or the data set's own id. Raises UserError where it cannot be had, in one line that says why.
    """
    if found := find_release(release, locale):
        return found
    target = data_folder() / release_name(release, locale)
    target.parent.mkdir(parents=True, exist_ok=True)
    with held(target):
        if found := find_release(release, locale):  # by the process that was waited for
            return found
        with requests.Session() as session:
            client = Client(session, read_key())
            dataset = release if is_id(release) else find_dataset(client, release, locale)
            download(lambda: client.request_download(dataset), target, session)
    return target


def is_id(release: str) -> bool:
    """Whether a release is told by its data set's id."""
    return not re.fullmatch(r"\d+\.\d+", release)


@contextmanager
def held(target: Path) -> Iterator[None]:
    """Hold a file to be made alone; waits for the process that does."""
    with target.with_name(f".{target.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            note(f"another process fetches {target}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_key() -> str:
    """The API key from the environment, or from .env in the project; raises UserError where there is none."""
    key = os.environ.get(API_KEY) or read_dotenv(Path(os.environ.get("DVC_ROOT", ".")) / ".env").get(API_KEY, "")
    advice = f"make a key at {SITE}/profile/credentials and put {API_KEY}=… into the environment or into .env"
    if not key.strip():
        raise UserError(f"{API_KEY} is missing: {advice}")
    if not re.fullmatch(r"[!-~]+", key.strip()):
        raise UserError(f"{API_KEY} contains spaces or letters that no key has: {advice}")
    return key.strip()


def read_dotenv(path: Path) -> dict[str, str]:
    """The values of a file of KEY=value lines; none where it is missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return {}
    pairs = re.findall(r"(?m)^[ \t]*(?:export[ \t]+)?(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", text)
    return {name: value[1:-1] if re.fullmatch(r"""(["']).*\1""", value) else value for name, value in pairs}


class Client:
    """The collective's API, with a key that nothing but its requests sees."""

    def __init__(self, session: requests.Session, key: str):
        self.session, self.key = session, key
        self.url = (os.environ.get(API_URL) or f"{SITE}/api").rstrip("/")

    def list_datasets(self, locale: str) -> Iterator[dict[str, Any]]:
        """The public data sets of a locale."""
        seen, page = 0, 1
        while True:
            answer = self.ask("GET", f"datasets?locale={quote(locale)}&limit={PAGE_SIZE}&page={page}", locale)
            items, total = answer.get("items"), answer.get("total")
            if not isinstance(items, list) or not isinstance(total, int):
                raise not_understood("a list without items or total")
            yield from (item for item in items if isinstance(item, dict))
            seen, page = seen + len(items), page + 1
            if not items or seen >= total:
                return

    def request_download(self, dataset: str) -> Offer:
        """A fresh link to a data set's archive."""
        answer = self.ask("POST", f"datasets/{quote(dataset, safe='')}/download", dataset)
        url, size, checksum = (answer.get(name) for name in ("downloadUrl", "sizeBytes", "checksum"))
        if not isinstance(url, str) or not re.fullmatch(r"https?://[^\s/]+/.*", url):
            raise not_understood("a download without a link")
        if not re.fullmatch(r"\d+", str(size)) or not re.fullmatch(r"[0-9a-fA-F]{64}|None", str(checksum)):
            raise not_understood("a download without size or with an odd checksum")
        return Offer(url, int(str(size)), checksum.lower() if checksum else None)

    def ask(self, method: str, path: str, dataset: str) -> dict[str, Any]:
        """The JSON that a request is answered with; raises UserError where that is an error."""
        for wait in (*WAITS[:3], None):
            try:
                response = self.session.request(
                    method, f"{self.url}/{path}", auth=self.authorise, timeout=TIMEOUT, allow_redirects=False
                )
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                problem = f"cannot be reached ({type(error).__name__}): check the connection"
            else:
                if response.status_code < 500:
                    return self.read_answer(response, dataset)
                problem = f"answers {response.status_code}: try again later"
            if wait is not None:
                time.sleep(wait)
        raise UserError(f"{urlsplit(self.url).hostname} {problem}")

    def authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key; being an ``auth``, it keeps requests from taking another one out of ~/.netrc."""
        request.headers["Authorization"] = f"Bearer {self.key}"
        return request

    def read_answer(self, response: requests.Response, dataset: str) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        answer = answer if isinstance(answer, dict) else {}
        status = response.status_code
        if status == 200 and answer:
            return answer
        said = " ".join(str(answer.get("error") or answer.get("message") or "").split())[:200]
        reason = f"{status}: {said}".replace(self.key, "…") if said else str(status)
        page = f"{self.url.removesuffix('/api')}/datasets/{dataset}"
        if status == 401:
            raise UserError(
                f"{NAME} does not accept {API_KEY} ({reason}): make a new key at {SITE}/profile/credentials"
            )
        if status == 403:
            raise UserError(
                f"{NAME} does not give out {dataset} yet ({reason}): open {page}, accept its terms, and retry"
            )
        if status == 404:
            raise UserError(f"{NAME} has no data set {dataset} ({reason}): check download.common_voice.release")
        if status == 410:
            raise UserError(
                f"{NAME} has withdrawn {dataset} ({reason}): choose another download.common_voice.release, or name an"
                " archive that you have in download.common_voice.archive"
            )
        if status == 429:
            wait = describe_wait(response.headers.get("Retry-After", ""))
            raise UserError(f"{NAME} asks to wait {wait} ({reason}): try again then; what has been fetched is kept")
        if status == 200:
            raise not_understood("no JSON object")
        raise UserError(f"{NAME} answers {reason} for {dataset}")


def not_understood(what: str) -> UserError:
    return UserError(
        f"{NAME} answered {what}, which this version does not understand: download the archive in a browser, and name"
        " it in download.common_voice.archive"
    )


def describe_wait(header: str) -> str:
    """A Retry-After, which is in seconds or a date, for a person."""
    try:
        seconds = (
            int(header)
            if header.strip().isdigit()
            else (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        )
    except (ValueError, TypeError):
        return "a while"
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def find_dataset(client: Client, release: str, locale: str) -> str:
    """The id of a release in a locale; raises UserError, with those there are, where there is no one such data set."""
    found: dict[str, list[str]] = {}
    for item in client.list_datasets(locale):
        title = TITLE.match(str(item.get("name")))
        if title and item.get("locale") == locale and isinstance(item.get("id"), str):
            found.setdefault(title[1], []).append(item["id"])
    match found.get(release, []):
        case [dataset]:
            return dataset
        case []:
            there = ", ".join(sorted(found, key=float)) or "none"
            raise UserError(f"{NAME} has no Common Voice {release} in {locale} (releases there: {there})")
        case several:
            ids = ", ".join(several)
            raise UserError(f"{NAME} has several Common Voice {release} in {locale}: set release to one of {ids}")


def download(request: Callable[[], Offer], target: Path, session: requests.Session) -> None:
    """Fetch an archive to target, from where an earlier run stopped, and verify it.

    What has been fetched waits beside the target under a name with the checksum, so that none is continued with
    another's bytes. A server that cannot begin in the middle begins anew. Raises UserError where it does not succeed.
    """
    offer = request()
    part = target.with_name(f"{target.name}.{(offer.sha256 or 'unknown')[:12]}.part")
    for other in target.parent.glob(f"{target.name}.*.part"):
        if other != part or offer.sha256 is None:
            other.unlink()
    check_space(part, offer.size)
    best, idle, refused = size_of(part), 0, 0
    with ProgressBar(total=offer.size, initial=best, unit="B", unit_scale=True, desc="download") as bar:
        while size_of(part) < offer.size:
            try:
                receive(session, offer, part, bar)
                continue
            except RefusedError as error:
                refused += 1
                if refused == LINKS:
                    raise UserError(
                        f"{host(offer.url)} refuses the links of {NAME} ({error}): try again later"
                    ) from None
                if (renewed := request()).sha256 != offer.sha256 or renewed.size != offer.size:
                    raise UserError(f"{target.name} was replaced at {NAME} while it was fetched: run again") from None
                offer = renewed
            except CutError as error:
                if size_of(part) > best:
                    idle = 0
                elif idle == len(WAITS):
                    raise UserError(
                        f"{host(offer.url)} sends no more of {target.name} ({error}; {size_of(part):,} of"
                        f" {offer.size:,} bytes are here): run again to go on"
                    ) from None
                else:
                    time.sleep(WAITS[idle])
                    idle += 1
            if size_of(part) > best:
                best, refused = size_of(part), 0
    verify(part, offer)
    part.replace(target)
    note(f"{target} is complete" + (f"; sha256 {offer.sha256}" if offer.sha256 else "; its checksum is not known"))


def receive(session: requests.Session, offer: Offer, part: Path, bar: Any) -> None:
    """Append what one request brings, up to the archive's size.

    Raises CutError where that is not all, RefusedError where the link does not hold, UserError for another size or a
    full disk.
    """
    begin = size_of(part)
    headers = {"Range": f"bytes={begin}-"} if begin else {}
    headers["Accept-Encoding"] = "identity"  # else a proxy might pack it once more
    try:
        with session.get(offer.url, headers=headers, stream=True, timeout=TIMEOUT, auth=lambda link: link) as response:
            begin = first_byte(response, begin, offer.size)
            bar.n = begin
            with part.open("ab" if begin else "wb", buffering=0) as file:
                while block := response.raw.read1(BLOCK, decode_content=False):  # what has come: a cut loses none
                    if begin + len(block) > offer.size:
                        raise wrong_size(response, "more", offer.size)
                    store(file.write, block, part)
                    begin += len(block)
                    bar.update(len(block))
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        what = "no answer" if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)) else "a cut"
        raise CutError(what) from None  # the error's own message has the link, which is as good as the key
    if begin < offer.size:
        raise CutError("a cut")


def first_byte(response: requests.Response, asked: int, size: int) -> int:
    """Where the content of an answer begins; raises as ``receive`` does."""
    status = response.status_code
    if status == 416 or status >= 500 or status == 429:
        raise CutError(f"status {status}")
    if status not in (200, 206):
        raise RefusedError(str(status))
    if status == 200:  # Range is ignored: from the start
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) != size:
            raise wrong_size(response, length, size)
        return 0
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not span or int(span[1]) != asked:
        raise CutError("an answer that begins elsewhere")
    if span[2] not in ("*", str(size)):
        raise wrong_size(response, span[2], size)
    return asked


def wrong_size(response: requests.Response, found: str, expected: int) -> UserError:
    return UserError(
        f"{host(response.url)} has {found} bytes, and {NAME} says {expected}: it may have been replaced just now; try"
        " again later"
    )


def store(write: Callable[[memoryview], int | None], block: bytes, part: Path) -> None:
    """Write a block whole; raises UserError where the disk is full."""
    view = memoryview(block)
    try:
        while view:
            view = view[write(view) or 0 :]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(part, "no space is left on the disk") from None
        raise


def check_space(part: Path, size: int) -> None:
    """Raises UserError where what is missing does not fit on the disk."""
    missing, free = size - size_of(part), shutil.disk_usage(part.parent).free
    if missing > free:
        raise full_disk(part, f"{missing / 1e9:.1f} GB are still to be fetched, and {free / 1e9:.1f} GB are free")


def full_disk(part: Path, what: str) -> UserError:
    return UserError(f"{part}: {what}: free some, or set VISKA_DATA to a folder on another disk, and run again")


def verify(part: Path, offer: Offer) -> None:
    """Raises UserError, and deletes the file, where its bytes are not those that were offered."""
    if offer.sha256 is None:
        return
    with ProgressBar(total=offer.size, unit="B", unit_scale=True, desc="verify") as bar:
        found = file_digest(part, advance=bar.update)
    if found != offer.sha256:
        part.unlink()
        raise UserError(
            f"what {host(offer.url)} sent has the sha256 {found}, and {NAME} says {offer.sha256}: it was deleted; run"
            " again to fetch it anew"
        )


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def host(url: str) -> str:
    """A link's host: the rest of it is secret."""
    return urlsplit(url).hostname or "the storage"

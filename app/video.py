"""The audio of a YouTube video as a file, by yt-dlp.

yt-dlp can fetch nearly anything, so it never sees what a person typed: an address is taken apart here and built anew
from the video's id, one extractor is enabled, and each request, redirected ones too, must go to a host of the list.
"""

import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs

import yt_dlp
from yt_dlp.globals import supported_js_runtimes
from yt_dlp.networking._urllib import UrllibRH
from yt_dlp.networking.exceptions import TransportError

from stages.asr.recording import format_duration
from stages.runtime.errors import UserError

YOUTUBE_HOSTS = ("youtube.com", "www.youtube.com", "m.youtube.com", "music.youtube.com", "www.youtube-nocookie.com")
SHORT_HOST = "youtu.be"
# Printable ASCII without a backslash, of which the host is letters: no user, port, number, escape or other alphabet.
ADDRESS_FORM = re.compile(
    r"(?=[!-\[\]-~]{1,2000}\Z)https?://(?P<host>[a-z.-]+)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?(?:#.*)?",
    re.I | re.ASCII,
)
VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")
ID_FOLDERS = ("shorts", "live", "embed", "v")  # where a video's id stands in the path
NOT_IDS = ("videoseries", "live_stream")  # which are as long as an id, in embed/
JAVASCRIPT_RUNTIMES = ("deno", "node", "quickjs")
SOCKET_SECONDS = 15  # without a byte after which a connection is given up

DROP_THE_FILE = "download it where you can play it, and drop the file here"
NO_ADDRESS = (
    "This is not the address of a YouTube video: paste one such as https://www.youtube.com/watch?v=…, or drop a file"
    " here"
)
ONE_VIDEO = "This is a playlist, a channel or a search: open one video of it, and paste the address of that"
NO_RUNTIME = (
    "yt-dlp found no audio, and no JavaScript runtime, which YouTube may ask for: install Deno with"
    " `python -m pip install deno` (or Node 22, or QuickJS) and try again"
)
NO_AUDIO = "YouTube gave no audio: a newer yt-dlp may find it (`python -m pip install -U yt-dlp yt-dlp-ejs`)"
UNREACHABLE = "YouTube cannot be reached, or the connection was lost"
FAILURES = {  # what yt-dlp says, in lower case, and what that means; the first that fits counts
    r"not a bot|captcha|rate-limited|too many requests|error 429|likely being blocked": (
        "YouTube refuses this machine, which it takes for a robot"
    ),
    r"confirm your age|age-restricted|inappropriate for some": "YouTube shows this video only to adults who sign in",
    r"premium|payment|purchase|rental": "This video has to be paid for",
    r"members|join this channel": "This video is for the members of its channel",
    r"your country|your location|geo.?restrict": "This video is not available in the country where this machine is",
    r"private": "This video is private",
    r"drm protected": "This video is copy-protected",
    r"premieres|will begin|has not started|is offline": "This video has not started yet",
    r"no space left": "There is no space left on this machine's disk",
    r"error 5\d\d": "YouTube is having problems of its own just now",
    r"error 404|error 410|unavailable|removed|terminated|deleted|does not exist|(?<!format is )not available"
    r"|isn't available": "YouTube has no such video, or no longer has it",
    r"urlopen error|timed out|connection|name resolution|tunnel|ssl": UNREACHABLE,
    r"error 403|forbidden|sign in|log in|login": "YouTube refuses to send this video to this machine",
    r"got error": UNREACHABLE,
}


@dataclass(frozen=True)
class VideoSource:
    """Where videos come from.

    rebuild: the address to fetch, built anew from what a person typed; raises UserError.
    extractors: of yt-dlp's, by their names.
    scheme, hosts: which requests may be sent; a host allows its subdomains, and a port only where it names one.
    """

    rebuild: Callable[[str], str]
    extractors: tuple[str, ...]
    scheme: str
    hosts: tuple[str, ...]

    def allows(self, scheme: str, host: str) -> bool:
        return scheme == self.scheme and any(f".{host.lower()}".endswith(f".{known}") for known in self.hosts)


def youtube_address(url: str) -> str:
    """The address of the one video that an address names; raises UserError where it names none."""
    match = ADDRESS_FORM.fullmatch(url.strip())
    host = match["host"].lower() if match else ""
    if not match or host not in (*YOUTUBE_HOSTS, SHORT_HOST):
        raise UserError(NO_ADDRESS)
    path: str = match["path"] or "/"
    first, second, *_ = *path.split("/")[1:], ""
    if host == SHORT_HOST:
        video = first
    elif first == "watch":
        video = parse_qs(match["query"] or "").get("v", [""])[0]
    else:
        video = second if first in ID_FOLDERS else ""
    if not VIDEO_ID.fullmatch(video) or video in NOT_IDS:
        raise UserError(ONE_VIDEO if video in ("", *NOT_IDS) and first else NO_ADDRESS)
    return f"https://www.youtube.com/watch?v={video}"


YOUTUBE = VideoSource(youtube_address, ("youtube",), "https", ("youtube.com", "googlevideo.com"))


def fetch_audio(
    url: str,
    folder: Path,
    max_seconds: float,
    max_bytes: int,
    timeout: float,
    progress: Callable[[float], None],
    source: VideoSource = YOUTUBE,
) -> Path:
    """The audio of a video as a new file in ``folder``, as it came: m4a, webm and the like.

    timeout: seconds for all of it. progress is told the share that has come, 0 to 1, at least with each request; what
    it raises ends the download and is raised here. Leaves nothing behind where it fails.
    Raises UserError with a sentence for a person, never in yt-dlp's words.
    """
    address, limits, log = source.rebuild(url), DownloadLimits(max_seconds, max_bytes, timeout, progress), DownloadLog()
    with TemporaryDirectory(prefix="video-", dir=folder) as inside:
        try:
            with Downloader(source, limits, downloader_options(source, limits, log, inside)) as downloader:
                downloader.extract_info(address)
        except DownloadAborted as aborted:
            raise aborted.cause from None
        except Exception as error:  # extractors fail in any way: what they read was made by others
            log.error(str(error))
            raise UserError(failure_reason(log)) from None
        files = list(Path(inside).iterdir())
        if len(files) != 1:
            raise UserError(failure_reason(log))
        return files[0].replace(folder / f"{Path(inside).name}{files[0].suffix}")


def downloader_options(source: VideoSource, limits: "DownloadLimits", log: "DownloadLog", folder: str) -> dict:
    """What yt-dlp is told: one video's audio alone, and no cache, cookies, configuration or ffmpeg program."""
    return {
        "allowed_extractors": list(source.extractors),
        "cachedir": False,
        "extractor_retries": 1,
        "fixup": "never",
        "format": "bestaudio/best",
        "fragment_retries": 3,
        "js_runtimes": {name: {} for name in javascript_runtimes()},
        "logger": log,
        "match_filter": limits.check_info,
        "noplaylist": True,
        "noprogress": True,
        "outtmpl": "audio.%(ext)s",
        "paths": {"home": folder},
        "progress_hooks": [limits.check_block],
        "quiet": True,
        "retries": 3,
        "skip_unavailable_fragments": False,
        "socket_timeout": SOCKET_SECONDS,
        "updatetime": False,
    }


def javascript_runtimes() -> list[str]:
    """The JavaScript runtimes on this machine that yt-dlp can use."""
    found = {name: supported_js_runtimes.value[name]().info for name in JAVASCRIPT_RUNTIMES}
    return [name for name, info in found.items() if info and info.supported]


def failure_reason(log: "DownloadLog") -> str:
    """What went wrong, as a sentence; where that is not clear and no JavaScript runtime is there, it is likely that."""
    said = " ".join(log.failed).lower().replace("’", "'")
    if "any player response" in said:  # YouTube's answers, each of which failed with no more than a warning
        said = " ".join(log.warned).lower()
    for pattern, reason in FAILURES.items():
        if re.search(pattern, said):
            return f"{reason}: {DROP_THE_FILE}"
    return f"{NO_AUDIO if javascript_runtimes() else NO_RUNTIME}, or {DROP_THE_FILE}"


class DownloadLog:
    """Where yt-dlp writes: kept to find the reason of a failure, shown to nobody."""

    def __init__(self) -> None:
        self.warned: list[str] = []
        self.failed: list[str] = []

    def debug(self, _: str) -> None:
        pass

    def warning(self, message: str) -> None:
        self.warned.append(message)

    def error(self, message: str) -> None:
        self.failed.append(message)


class DownloadAborted(BaseException):
    """Carries its cause through yt-dlp, which catches Exception in many places."""

    def __init__(self, cause: Exception):
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def aborting() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise DownloadAborted(error) from error


class DownloadLimits:
    """The limits of one download, checked before and while it runs."""

    def __init__(self, max_seconds: float, max_bytes: int, timeout: float, progress: Callable[[float], None]):
        self.max_seconds, self.max_bytes, self.timeout, self.progress = max_seconds, max_bytes, timeout, progress
        self.deadline, self.share = time.monotonic() + timeout, 0.0

    def check_time(self) -> None:
        """Check the time left and tell progress: before each request, and after each block."""
        with aborting():
            if time.monotonic() > self.deadline:
                raise UserError(f"The video did not arrive within {self.timeout:.0f} s: {DROP_THE_FILE}")
            self.progress(self.share)

    def check_info(self, info: dict, *, incomplete: bool) -> None:
        """Called with what is known of a video before anything of it is downloaded."""
        with aborting():
            if info.get("playlist_index"):
                raise UserError(ONE_VIDEO)
            if info.get("is_live") or info.get("live_status") in ("is_live", "is_upcoming", "post_live"):
                raise UserError("This is a live broadcast: wait until it has ended and YouTube shows it as a video")
            self.check_length(info.get("duration") or 0)
            self.check_size(info.get("filesize") or info.get("filesize_approx") or 0)

    def check_block(self, state: dict) -> None:
        """Called with each block; a size that was announced need not be true."""
        total = state.get("total_bytes") or state.get("total_bytes_estimate") or 0
        with aborting():
            self.check_size(max(state.get("downloaded_bytes") or 0, state.get("total_bytes") or 0))
        self.share = min(1.0, state.get("downloaded_bytes", 0) / total) if total else 0.0
        self.check_time()

    def check_length(self, seconds: float) -> None:
        if seconds > self.max_seconds:
            limit = format_duration(self.max_seconds)
            raise UserError(
                f"The video lasts {format_duration(seconds)}, and at most {limit} is transcribed at once:"
                " download it, cut it, and drop the parts here one by one"
            )

    def check_size(self, n_bytes: int) -> None:
        if n_bytes > self.max_bytes:
            raise UserError(
                f"The audio of this video is larger than {self.max_bytes / 1e6:.3g} MB: download it, cut it, and drop"
                " the parts here one by one"
            )


class Downloader(yt_dlp.YoutubeDL):
    """A YoutubeDL that loads no plugins, and whose every request passes a HostFilter."""

    def __init__(self, source: VideoSource, limits: DownloadLimits, params: dict):
        os.environ["YTDLP_NO_PLUGINS"] = "1"  # which a YoutubeDL reads before anything else
        self.make_filter = partial(HostFilter, source, limits)
        super().__init__(params)

    def build_request_director(self, handlers: Any, preferences: Any = None) -> Any:
        return super().build_request_director([partial(FilteredHandler, make_filter=self.make_filter)], preferences)


class FilteredHandler(UrllibRH):
    """yt-dlp's plainest way to send requests, in which each redirect is a request of its own."""

    RH_KEY = UrllibRH.RH_KEY

    def __init__(self, *, make_filter: "Callable[[], HostFilter]", **kwargs: Any):
        super().__init__(**kwargs)
        self.make_filter = make_filter

    def _create_instance(self, **kwargs: Any) -> urllib.request.OpenerDirector:
        opener = super()._create_instance(**kwargs)
        opener.add_handler(self.make_filter())
        return opener


class HostFilter(urllib.request.BaseHandler):
    """Checks each request before it is sent, redirected ones too: its host must be one of the source's."""

    def __init__(self, source: VideoSource, limits: DownloadLimits):
        self.source, self.limits = source, limits

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        self.limits.check_time()
        if not self.source.allows(request.type, request.host):
            raise TransportError(f"forbidden: {request.host}")
        return request

    https_request = ftp_request = data_request = http_request

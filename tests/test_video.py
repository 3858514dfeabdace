"""Videos, by the real yt-dlp from stand-ins on the loopback: what is fetched, what is not, what a person is told."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from app.video import NO_RUNTIME, ONE_VIDEO, YOUTUBE, fetch_audio, javascript_runtimes, youtube_address
from stages.asr.audio import read_audio
from stages.runtime.errors import UserError
from tests.support.material import ROOT
from tests.support.tones import record, record_with_ffmpeg
from tests.support.video import HOSTS, STORE, VIDEO, Reply, Site, serve

ADDRESS = f"https://www.youtube.com/watch?v={VIDEO}"
MAX_BYTES = 200_000


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Site]:
    with serve(tmp_path_factory.mktemp("authority")) as server:
        yield server


@pytest.fixture
def site(server) -> Site:
    """The server, which has nothing yet and was asked for nothing."""
    server.replies.clear()
    server.asked.clear()
    return server


@pytest.fixture
def youtube(site, monkeypatch) -> Site:
    """The server as the proxy through which yt-dlp reaches YouTube, or any other host."""
    for scheme in ("http", "https", "ftp", "all"):
        monkeypatch.setenv(f"{scheme}_proxy", site.url)
    monkeypatch.setattr("certifi.where", lambda: str(site.authority))
    return site


@pytest.fixture(scope="module")
def m4a(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "a.m4a"
    record_with_ffmpeg(path, 3, "aac", 44_100, 1)
    return path.read_bytes()


@pytest.fixture
def get(tmp_path) -> Callable[..., Path]:
    """Call with an address and a source: fetch into a folder, where nothing is left where that fails."""
    folder = tmp_path / "videos"
    folder.mkdir()

    def get(url: str, source=YOUTUBE, max_seconds=600, timeout=60, progress=lambda share: None) -> Path:
        before, path = set(folder.iterdir()), None
        try:
            path = fetch_audio(url, folder, max_seconds, MAX_BYTES, timeout, progress, source)
        finally:
            assert set(folder.iterdir()) - before == ({path} if path else set())
        return path

    return get


def refusal(get: Callable[..., Path], url: str, *source, **limits) -> str:
    """What a person is told: one sentence, and nothing of yt-dlp's own words."""
    with pytest.raises(UserError) as caught:
        get(url, *source, **limits)
    said = str(caught.value)
    assert re.fullmatch(r"[A-Zy][^\n\x1b]{20,300}", said), said
    assert not re.search(r"ERROR|Traceback|Errno|\[|cookies|github|--|HTTP", said), said
    return said


GOOD = [
    ADDRESS,
    f"  {ADDRESS}\n",
    f"http://youtube.com/watch?v={VIDEO}",
    f"HTTPS://WWW.YouTube.com/watch?v={VIDEO}",
    f"https://m.youtube.com/watch?v={VIDEO}&t=42s",
    f"https://music.youtube.com/watch?app=desktop&v={VIDEO}&list=PLrAXtmErZgOeiKm4sgNOknGvNjby9efdf",
    f"https://www.youtube.com/watch?list=PLrAXtmErZgOeiKm4sgNOknGvNjby9efdf&v={VIDEO}#t=3",
    f"https://youtu.be/{VIDEO}",
    f"https://youtu.be/{VIDEO}?si=abcDEF&t=1",
    f"https://www.youtube.com/shorts/{VIDEO}",
    f"https://www.youtube.com/live/{VIDEO}?feature=share",
    f"https://www.youtube.com/embed/{VIDEO}",
    f"https://www.youtube-nocookie.com/embed/{VIDEO}?autoplay=1",
    f"https://www.youtube.com/v/{VIDEO}/",
]


@pytest.mark.parametrize("url", GOOD)
def test_an_address_is_built_anew_from_the_videos_id(url):
    assert youtube_address(url) == ADDRESS


COLLECTIONS = [
    "https://www.youtube.com/playlist?list=PLrAXtmErZgOeiKm4sgNOknGvNjby9efdf",
    "https://www.youtube.com/watch?list=PLrAXtmErZgOeiKm4sgNOknGvNjby9efdf",
    "https://www.youtube.com/embed/videoseries?list=PLrAXtmErZgOeiKm4sgNOknGvNjby9efdf",
    "https://www.youtube.com/embed/live_stream?channel=UCuAXFkgsw1L7xaCfnd5JJOw",
    "https://www.youtube.com/@svt",
    "https://www.youtube.com/@svt/videos",
    "https://www.youtube.com/c/svt",
    "https://www.youtube.com/user/svt",
    "https://www.youtube.com/channel/UCuAXFkgsw1L7xaCfnd5JJOw",
    "https://www.youtube.com/results?search_query=hej",
    "https://www.youtube.com/feed/subscriptions",
    "https://music.youtube.com/playlist?list=RDCLAK5uy",
]
HOSTILE = [
    # not addresses
    *(
        "",
        " ",
        "hej",
        VIDEO,
        "youtube",
        "youtube.com",
        f"www.youtube.com/watch?v={VIDEO}",
        "//",
        "https://",
        "https:///",
    ),
    *("https:", "https:www.youtube.com", f"https:/www.youtube.com/watch?v={VIDEO}", "\0", "%00", "🎬", "a" * 100_000),
    # other schemes
    *("file:///etc/passwd", "file://localhost/etc/passwd", "FILE:///etc/passwd", "ftp://www.youtube.com/x"),
    *("data:audio/wav;base64,UklGRg==", "javascript:alert(1)", "gopher://127.0.0.1:70/", "dict://127.0.0.1:2628/d:a"),
    *("ytsearch:hej", "ytsearch10:hej", "ytuser:svt", ":ytfav", ":ythistory", "ytdl://x", "http+unix://%2Ftmp%2Fs/"),
    *(f"ws://www.youtube.com/watch?v={VIDEO}", f"blob:{ADDRESS}", f"view-source:{ADDRESS}", "concat:a|b"),
    *(f"rtmp://www.youtube.com/watch?v={VIDEO}", f"smb://www.youtube.com/watch?v={VIDEO}", "pipe:0", "-", "--exec=id"),
    # private and other addresses
    *("http://127.0.0.1/", "http://127.0.0.1:8080/a.mp3", "http://localhost/a.mp3", "http://[::1]/", "http://0/"),
    *("http://0x7f000001/", "http://2130706433/", "http://127.1/", "http://017700000001/", "http://10.0.0.1/a.mp3"),
    *("http://169.254.169.254/latest/meta-data/", "http://192.168.1.1/", "http://[fe80::1%25lo]/", "http://0.0.0.0/"),
    *("http://[::ffff:127.0.0.1]/", "http://metadata.google.internal/", "https://[2001:db8::1]/watch?v=x"),
    f"https://127.0.0.1/watch?v={VIDEO}",
    f"https://[::1]/watch?v={VIDEO}",
    # other hosts, and such as look alike
    *("https://vimeo.com/1", "https://example.com/a.mp3", "https://googlevideo.com/videoplayback?id=1"),
    *(f"https://youtube.com.evil.com/watch?v={VIDEO}", f"https://evil.com/youtube.com/watch?v={VIDEO}"),
    *(f"https://evil.com/?u={ADDRESS}", f"https://evil.com#{ADDRESS}", f"https://evilyoutube.com/watch?v={VIDEO}"),
    *(f"https://youtube.com-evil.com/watch?v={VIDEO}", f"https://youtube.evil.com/watch?v={VIDEO}"),
    *(f"https://www.youtube.co/watch?v={VIDEO}", f"https://www.youtube.comm/watch?v={VIDEO}"),
    *(f"https://www.youtube.com./watch?v={VIDEO}", f"https://.youtube.com/watch?v={VIDEO}"),
    *(f"https://www..youtube.com/watch?v={VIDEO}", f"https://evil.youtube.com/watch?v={VIDEO}"),
    *(f"https://yout\u03c5be.com/watch?v={VIDEO}", f"https://www.y\u043eutube.com/watch?v={VIDEO}"),
    *(f"https://ｙｏｕｔｕｂｅ.com/watch?v={VIDEO}", f"https://xn--yutube-wqf.com/watch?v={VIDEO}"),
    *(f"https://www.youtube。com/watch?v={VIDEO}", f"https://youtu\u200bbe.com/watch?v={VIDEO}"),
    *(f"https://www.youtube%2ecom/watch?v={VIDEO}", f"https://www.youtube.com%00.evil.com/watch?v={VIDEO}"),
    *(f"https://youtu.be.evil.com/{VIDEO}", f"https://youtu-be.com/{VIDEO}", f"https://evil.com/youtu.be/{VIDEO}"),
    f"https://www.youtube-nocookie.com.evil.com/embed/{VIDEO}",
    *(f"https://www.youtube-noco\u212aie.com/embed/{VIDEO}", f"http\u017f://www.youtube.com/watch?v={VIDEO}"),
    # user, port, signs that parsers take differently
    *(f"https://youtube.com@evil.com/watch?v={VIDEO}", f"https://user:pass@www.youtube.com/watch?v={VIDEO}"),
    *(f"https://evil.com@www.youtube.com/watch?v={VIDEO}", f"https://@www.youtube.com/watch?v={VIDEO}"),
    *(f"https://www.youtube.com:443/watch?v={VIDEO}", f"https://www.youtube.com:22/watch?v={VIDEO}"),
    *(f"https://www.youtube.com:/watch?v={VIDEO}", f"https://www.youtube.com:@evil.com/watch?v={VIDEO}"),
    *(f"https://evil.com\\@www.youtube.com/watch?v={VIDEO}", f"https://www.youtube.com\\.evil.com/watch?v={VIDEO}"),
    *(f"https:\\\\www.youtube.com\\watch?v={VIDEO}", f"https://www.youtube.com\\watch?v={VIDEO}"),
    *(f"https://www.youtube.com /watch?v={VIDEO}", f"https://www.youtube.com\t/watch?v={VIDEO}"),
    *(f"https://www.you\ntube.com/watch?v={VIDEO}", f"ht\ntps://www.youtube.com/watch?v={VIDEO}"),
    *(f"https://www.youtube.com\r\nHost: evil.com/watch?v={VIDEO}", f"https://www.youtube.com\0/watch?v={VIDEO}"),
    *(f"https://www.youtube.com?@evil.com/watch?v={VIDEO}", f"https://www.youtube.com#@evil.com/watch?v={VIDEO}"),
    *(f"https://www.youtube.com;evil.com/watch?v={VIDEO}", f"https://www.youtube.com,evil.com/watch?v={VIDEO}"),
    *(f"{ADDRESS} https://evil.com/", f"{ADDRESS}\nhttps://evil.com/", f"{ADDRESS}\x1b[31m", f"{ADDRESS}&x=å"),
    f"{ADDRESS}&" + "x" * 2000,
    # no video's id
    *("https://www.youtube.com", "https://www.youtube.com/", "https://youtu.be/", "https://www.youtube.com//"),
    *("https://www.youtube.com/watch?v=short", "https://www.youtube.com/watch?v=dQw4w9WgXcQQ", "https://youtu.be/x"),
    *(
        "https://www.youtube.com/watch?v=../../../x",
        "https://www.youtube.com/watch?v=http://a.b",
        "https://youtu.be/..",
    ),
    *("https://www.youtube.com/watch?v=%64Qw4w9WgXc", "https://www.youtube.com/watch?v=dQw4w9WgXc%00"),
    *("https://www.youtube.com/watch?v=dQw4w9WgXc%0a", "https://www.youtube.com/watch?v=dQw4w9WgXc%C3%A5"),
    *(f"https://www.youtube.com//watch?v={VIDEO}", f"https://www.youtube.com/shorts//{VIDEO}x"),
    f"https://www.youtube.com/redirect?q=http://127.0.0.1/&v={VIDEO}",
    f"https://www.youtube.com/attribution_link?u=/watch?v={VIDEO}",
]


def test_a_collection_asks_for_one_video(youtube, get):
    assert {refusal(get, url) for url in COLLECTIONS} == {ONE_VIDEO}
    assert not youtube.asked


def test_hostile_addresses_are_refused_before_anything_is_asked(youtube, get):
    assert len(set(HOSTILE)) == len(HOSTILE) > 100
    for url in HOSTILE:
        refusal(get, url)
    assert not youtube.asked


def test_a_video_comes_through_youtubes_own_extractor(youtube, get, m4a, capfd):
    youtube.show(m4a)
    shares = []
    path = get(f"https://youtu.be/{VIDEO}?si=x", progress=shares.append)
    assert path.read_bytes() == m4a
    assert len(read_audio(path, 16_000)) == pytest.approx(8_000, rel=0.2)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)
    assert {place.split()[1].partition("/")[0] for place in youtube.asked} == set(HOSTS)
    assert capfd.readouterr() == ("", "")


SAID = {  # what YouTube's player says, in words that it uses, and what a person reads
    "Sign in to confirm you’re not a bot": "takes for a robot",
    "Sign in to confirm your age": "adults who sign in",
    "Private video": "is private",
    "This video is private": "is private",
    "Join this channel to get access to members-only content like this video": "for the members",
    "This video requires payment to watch": "paid for",
    "Video unavailable": "no such video",
    "This video has been removed by the uploader": "no such video",
    "This video is no longer available because the YouTube account has been terminated": "no such video",
    "The uploader has not made this video available in your country": "the country where this machine is",
    "This content isn't available, try again later": "takes for a robot",
    "This live event will begin in 5 hours.": "not started yet",
    "Premieres in 3 hours": "not started yet",
    "Please sign in": "refuses to send",
}


@pytest.mark.parametrize("reason", SAID)
def test_what_youtube_refuses_is_told_in_plain_words(youtube, get, reason):
    youtube.show(status={"status": "UNPLAYABLE", "reason": reason})
    said = refusal(get, ADDRESS)
    assert SAID[reason] in said
    assert said.endswith("download it where you can play it, and drop the file here")


@pytest.mark.parametrize("reason", ["No supported JavaScript runtime", "Något helt annat"])
def test_where_no_reason_is_known_a_missing_runtime_is_named(youtube, get, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    youtube.show(status={"status": "OK", "reason": reason})
    assert refusal(get, ADDRESS).startswith(NO_RUNTIME)
    program(tmp_path / "qjs", "QuickJS version 2025-09-13")
    assert "newer yt-dlp" in refusal(get, ADDRESS)


@pytest.mark.parametrize(
    ("name", "says", "found"),
    [
        ("deno", "deno 2.9.8 (stable)", ["deno"]),
        ("deno", "deno 1.40.0", []),
        ("node", "v24.1.0", ["node"]),
        ("node", "v18.0.0", []),
        ("qjs", "QuickJS version 2025-09-13", ["quickjs"]),
    ],
)
def test_runtimes_are_found_where_yt_dlp_can_use_them(name, says, found, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    program(tmp_path / name, says)
    assert javascript_runtimes() == found


def program(path: Path, says: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


def test_what_is_too_long_too_large_or_live_is_not_downloaded(youtube, get, m4a):
    youtube.show(m4a, lengthSeconds="36000")
    assert "lasts 10:00:00, and at most 0:10:00 is transcribed" in refusal(get, ADDRESS)
    youtube.show(m4a, isLive=True)
    assert "live broadcast" in refusal(get, ADDRESS)
    youtube.show(m4a * 100)
    assert "larger than 0.2 MB" in refusal(get, ADDRESS)
    assert not [place for place in youtube.asked if STORE in place]


@pytest.mark.parametrize("status", [302, 307, 308])
def test_youtube_sends_on_to_no_other_host(youtube, get, status):
    elsewhere = Reply(status=status, headers={"Location": "https://www.google.com/sorry/index"})
    youtube.show()
    youtube.replies |= dict.fromkeys(("/watch", "/youtubei/v1/player", "/youtubei/v1/next"), elsewhere)
    assert "refuses" in refusal(get, ADDRESS)
    youtube.show(b"x" * 1000)
    youtube.replies["/videoplayback"] = elsewhere
    refusal(get, ADDRESS)
    assert {place.split()[1].partition("/")[0] for place in youtube.asked} == set(HOSTS)


def test_without_a_network_a_person_is_told_so(site, get, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    assert "cannot be reached" in refusal(get, ADDRESS)
    monkeypatch.setenv("https_proxy", site.url)  # whose certificate nobody has signed
    assert "cannot be reached" in refusal(get, ADDRESS)


def test_no_plugin_is_loaded(tmp_path):
    plugin = tmp_path / "yt_dlp_plugins" / "extractor" / "evil.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(f"open({str(tmp_path / 'loaded')!r}, 'w')\n")
    code = "from app.video import *; Downloader(YOUTUBE, None, {}).close()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=True)
    assert not (tmp_path / "loaded").exists()


@pytest.fixture
def mp3(tmp_path) -> bytes:
    record(tmp_path / "a.mp3", 3, seconds=2)
    return (tmp_path / "a.mp3").read_bytes()


def test_a_file_from_the_loopback(site, get, mp3):
    site.replies["/a.mp3"] = Reply(mp3)
    assert get(f"{site.url}/a.mp3", site.source).read_bytes() == mp3


@pytest.mark.parametrize(
    ("scheme", "host", "allowed"),
    [
        ("https", "www.youtube.com", True),
        ("https", STORE.upper(), True),
        ("https", "googlevideo.com", True),
        ("http", "www.youtube.com", False),
        ("ftp", "www.youtube.com", False),
        ("https", "evilyoutube.com", False),
        ("https", "evil-googlevideo.com", False),
        ("https", "googlevideo.com.evil.com", False),
        ("https", "www.youtube.com:8443", False),
        ("https", "www.youtube.com.", False),
        ("https", "127.0.0.1", False),
        ("https", "", False),
    ],
)
def test_only_the_named_hosts_are_reached(scheme, host, allowed):
    assert YOUTUBE.allows(scheme, host) == allowed


def test_only_the_named_extractors_are_there(site, get, mp3):
    site.replies["/a.mp3"] = Reply(mp3)
    refusal(get, f"{site.url}/a.mp3", replace(site.source, extractors=YOUTUBE.extractors))
    assert not site.asked


def page(**video) -> Reply:
    video = {"@context": "https://schema.org", "@type": "VideoObject", "name": "Ett klipp"} | video
    html = f'<html><script type="application/ld+json">{json.dumps(video)}</script></html>'
    return Reply(html.encode(), "text/html")


def test_a_page_says_how_long_and_how_large(site, get, mp3):
    site.replies["/a.mp3"] = Reply(mp3)
    place = {"contentUrl": f"{site.url}/a.mp3"}
    site.replies["/page"] = page(**place, duration="PT5M")
    assert get(f"{site.url}/page", site.source).read_bytes() == mp3
    site.replies["/page"] = page(**place, duration="PT5H")
    assert "lasts 5:00:00" in refusal(get, f"{site.url}/page", site.source)
    site.replies["/page"] = page(**place, contentSize="900000000")
    assert "is larger than" in refusal(get, f"{site.url}/page", site.source)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(status=403), "refuses to send"),
        (Reply(status=404), "no such video"),
        (Reply(status=429), "takes for a robot"),
        (Reply(status=503), "problems of its own"),
        (Reply(b""), "gave no audio|found no audio"),
        (Reply(b"<html>hej</html>", "text/html"), "gave no audio|found no audio"),
        (Reply(b"\0" * 20_000, length=50_000), "the connection was lost"),  # cut
        (Reply(b"\0" * 1000, length=10**12), "is larger than"),  # claims to be large
        (Reply(b"\0" * 5_000_000, length=None), "is larger than"),  # is large, and says nothing
    ],
)
def test_a_file_that_cannot_be_had(site, get, reply, said):
    site.replies["/a.mp3"] = reply
    assert re.search(said, refusal(get, f"{site.url}/a.mp3", site.source))


def test_no_request_leaves_the_list(site, get, tmp_path):
    """Redirects, pages and playlists that lead elsewhere: to another name of this machine, its files, other schemes."""
    with serve(tmp_path / "other") as other:
        places = [f"{other.url}/a.mp3", other.url.replace("127.0.0.1", "localhost") + "/a.mp3"]
        places += [site.url.replace("127.0.0.1", "localhost") + "/a.mp3", "file:///etc/passwd"]
        places += [f"ftp://127.0.0.1:{other.server_port}/a.mp3", f"https://127.0.0.1:{site.server_port}/a.mp3"]
        for number, place in enumerate(places):
            playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{place}\n#EXT-X-ENDLIST\n"
            ways = {
                "redirect.mp3": Reply(status=302, headers={"Location": place}),
                "page": page(contentUrl=place),
                "list.m3u8": Reply(playlist.encode(), "application/vnd.apple.mpegurl"),
            }
            for name, reply in ways.items():
                path = f"/{number}/{name}"
                site.replies[path] = reply
                refusal(get, site.url + path, site.source)
        assert not other.asked
    assert not [place for place in site.asked if place.endswith("/a.mp3")]


def test_a_list_of_several_videos_asks_for_one(site, get, mp3):
    site.replies["/a.mp3"] = site.replies["/b.mp3"] = Reply(mp3)
    items = "".join(f'<item><title>{name}</title><enclosure url="{site.url}/{name}.mp3"/></item>' for name in "ab")
    feed = f'<?xml version="1.0"?><rss version="2.0"><channel><title>x</title>{items}</channel></rss>'
    site.replies["/feed"] = Reply(feed.encode(), "application/rss+xml")
    assert refusal(get, f"{site.url}/feed", site.source) == ONE_VIDEO


def test_a_part_that_is_missing_is_not_passed_over(site, get, mp3):
    parts = "".join(f"#EXTINF:2,\n{site.url}/{name}.mp3\n" for name in "aba")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n{parts}#EXT-X-ENDLIST\n"
    site.replies["/list.m3u8"] = Reply(playlist.encode(), "application/vnd.apple.mpegurl")
    site.replies["/a.mp3"] = site.replies["/b.mp3"] = Reply(mp3)
    assert get(f"{site.url}/list.m3u8", site.source).read_bytes() == mp3 * 3
    site.replies["/b.mp3"] = Reply(status=403)
    assert "refuses to send" in refusal(get, f"{site.url}/list.m3u8", site.source)


def test_a_person_may_stop_it(site, get, mp3):
    class Stop(Exception):
        pass

    def stop(share: float, wanted: float) -> None:
        if share >= wanted:
            raise Stop

    site.replies["/a.mp3"] = Reply(mp3)
    for wanted in (0, 0.1):
        with pytest.raises(Stop):
            get(f"{site.url}/a.mp3", site.source, progress=partial(stop, wanted=wanted))


def test_it_ends_when_its_time_is_up(youtube, site, get, mp3):
    site.replies["/a.mp3"] = Reply(mp3)
    assert "within -1 s" in refusal(get, f"{site.url}/a.mp3", site.source, timeout=-1)
    assert "within -1 s" in refusal(get, ADDRESS, timeout=-1)
    assert not site.asked


def test_each_gets_their_own(site, tmp_path):
    for number in range(8):
        record(tmp_path / f"{number}.mp3", number)
        site.replies[f"/{number}.mp3"] = Reply((tmp_path / f"{number}.mp3").read_bytes())
    folder = tmp_path / "videos"
    folder.mkdir()

    def load(number: int) -> bool:
        url = f"{site.url}/{number}.mp3"
        path = fetch_audio(url, folder, 600, MAX_BYTES, 60, lambda share: None, site.source)
        return path.read_bytes() == site.replies[f"/{number}.mp3"].body

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(load, range(8)))

"""Common Voice from a stand-in of Mozilla Data Collective, over HTTP on the loopback."""

import hashlib
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from stages.corpora import data_collective
from stages.corpora.data_collective import LINKS, fetch_release
from stages.runtime.errors import UserError
from tests.support.collective import ID, KEY, LOCALE, dataset, serve_collective
from tests.support.material import ROOT
from tests.support.process import PATIENCE, Stage
from tests.support.release import collect, plain

TARGET = f"cv-corpus-25.0-{LOCALE}.tar.gz"


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    """A release of a few clips, some tens of thousands of bytes."""
    return plain().pack(tmp_path_factory.mktemp("release")).read_bytes()


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """The user's data folder, not made yet."""
    monkeypatch.setenv("VISKA_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def server(archive, data, monkeypatch):
    """The collective, for the key in the environment; a client that waits between its tries loses no time here."""
    monkeypatch.setattr(data_collective, "WAITS", (0, 0, 0, 0, 0))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve_collective(archive) as server:
        monkeypatch.setenv("MDC_API_URL", server.url)
        monkeypatch.setenv("MDC_API_KEY", KEY)
        yield server


def refusal() -> str:
    """The one line that a fetch ends with, which gives away neither the key nor a link."""
    with pytest.raises(UserError) as refused:
        fetch_release("25.0", LOCALE)
    line = str(refused.value)
    assert "\n" not in line and KEY not in line and "secret" not in line
    return line


def parts(data: Path) -> list[Path]:
    return sorted(data.glob("*.part"))


def test_a_release_is_fetched_once_and_used_as_if_it_had_been_put_there(server, data, archive):
    clips, drops, _ = collect(data, archive=None, release="25.0", locale=LOCALE)
    assert len(clips["train"]) == 6 and not drops
    assert (data / TARGET).read_bytes() == archive
    again, _, _ = collect(data, archive=None, release="25.0", locale=LOCALE)
    assert again == clips
    assert len(server.links) == len(server.starts) == 1
    assert [path.name for path in data.iterdir() if path.name[0] != "."] == [TARGET]


def test_an_archive_of_the_release_that_lies_there_is_taken(server, data, archive):
    data.mkdir()
    (data / "cv-corpus-25.0-delta-2026-03-09-sv-SE.tar.gz").write_bytes(b"what is new alone")
    (data / "cv-corpus-25.0-2026-03-09-sv-SE.tar.gz").write_bytes(b"by hand")
    assert fetch_release("25.0", LOCALE).read_bytes() == b"by hand"
    assert not server.links


def test_a_release_is_known_by_its_id_too(server, archive):
    assert fetch_release(ID, LOCALE).read_bytes() == archive


@pytest.mark.parametrize("seed", [1, 2])
def test_fifty_cuts(server, archive, seed):
    rng = random.Random(seed)
    sizes = [rng.randint(1, len(archive) // 55) for _ in range(50)]
    server.faults = [f"cut {size}" for size in sizes]
    server.link_uses = 7
    assert fetch_release("25.0", LOCALE).read_bytes() == archive
    served = [start for start in server.starts if start]
    assert len(served) == 50 and served == sorted(set(served))  # no byte was asked for twice
    assert len(server.links) == 8


@pytest.mark.parametrize("seed", range(20))
def test_any_faults_in_a_row_end_right_or_with_a_line_and_never_with_another_archive(server, data, archive, seed):
    rng = random.Random(seed)
    kinds = ["whole", "elsewhere", "503", "403", "404", "416", "cut 0", f"cut {rng.randint(1, 9000)}", "changed"]
    server.faults = rng.choices(kinds, k=rng.randint(1, 12))
    server.link_uses = rng.randint(1, 5)
    for _ in range(20):
        try:
            path = fetch_release("25.0", LOCALE)
        except UserError as error:
            assert "\n" not in str(error) and KEY not in str(error) and "secret" not in str(error)
            assert not (data / TARGET).exists()
        else:
            assert path.read_bytes() == archive
            return
    raise AssertionError("does not come to its end")


def test_a_server_that_ignores_range_starts_again(server, archive):
    server.faults = ["cut 9000", "whole"]
    assert fetch_release("25.0", LOCALE).read_bytes() == archive
    assert server.starts == [0, 0]


def test_a_server_that_ignores_range_and_always_cuts_is_given_up(server, data):
    server.faults = ["cut 9000"] + ["whole cut 8000"] * 30
    said = f"localhost sends no more of {TARGET} (a cut; 8,000 of {len(server.archive):,} bytes are here)"
    assert refusal() == f"{said}: run again to go on"
    assert server.starts == [0] * 7
    assert not (data / TARGET).exists()


def test_an_expired_link_is_renewed_and_links_that_never_hold_are_told(server, archive, data):
    server.faults, server.link_uses = ["cut 9000"], 1
    assert fetch_release("25.0", LOCALE).read_bytes() == archive
    assert server.starts == [0, 9000] and len(server.links) == 2
    (data / TARGET).unlink()
    server.link_uses = 0
    assert refusal() == "localhost refuses the links of Mozilla Data Collective (403): try again later"
    assert len(server.links) == 2 + LINKS


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (
            401,
            {},
            "does not accept MDC_API_KEY (401: No.): make a new key at https://mozilladatacollective.com/profile",
        ),
        (403, {}, "does not give out {id} yet (403: No.): open {site}/datasets/{id}, accept its terms, and retry"),
        (404, {}, "has no data set {id} (404: No.): check download.common_voice.release"),
        (410, {}, "has withdrawn {id} (410: No.): choose another download.common_voice.release, or name an archive"),
        (429, {"Retry-After": "5400"}, "asks to wait 90 min (429: No.): try again then; what has been fetched is kept"),
        (429, {"Retry-After": "Wed, 25 Nov 2099 00:00:00 GMT"}, "asks to wait "),
        (429, {"Retry-After": "soon"}, "asks to wait a while (429: No.)"),
        (402, {}, "answers 402: No. for {id}"),
        (200, {}, "answered a download without a link, which this version does not understand: download the archive"),
    ],
)
def test_each_refusal_has_a_line_of_its_own(server, status, headers, said):
    server.refusal = status, headers, {"error": "No."}
    expected = said.format(id=ID, site=server.url.removesuffix("/api"))
    assert refusal().startswith(f"Mozilla Data Collective {expected}")


def test_what_a_server_says_of_the_key_is_not_repeated(server):
    server.refusal = 403, {}, {"error": f"key {KEY} may\nnot"}
    assert "(403: key … may not)" in refusal()


def test_another_size_than_the_one_that_was_said(server, data):
    server.size = str(len(server.archive) + 1)
    said = f"localhost has {len(server.archive)} bytes, and Mozilla Data Collective says {server.size}"
    assert refusal().startswith(said)
    server.size = str(len(server.archive) - 1)
    assert refusal().startswith(f"localhost has {len(server.archive)} bytes")
    assert not (data / TARGET).exists()


def test_another_checksum_than_the_one_that_was_said(server, data, archive):
    server.faults = ["changed"]
    assert f"and Mozilla Data Collective says {server.checksum}: it was deleted" in refusal()
    assert not parts(data)
    assert fetch_release("25.0", LOCALE).read_bytes() == archive


def test_a_part_of_other_bytes_is_not_continued(server, data, archive):
    server.faults = ["cut 9000"] + ["503"] * 6
    assert "status 503; 9,000 of" in refusal()
    server.archive = archive[:5000] + b"new" + archive[5000:]
    server.size, server.checksum = str(len(server.archive)), hashlib.sha256(server.archive).hexdigest()
    assert fetch_release("25.0", LOCALE).read_bytes() == server.archive
    assert server.starts == [0, 0] and not parts(data)


def test_an_archive_that_is_replaced_while_it_is_fetched(server):
    server.link_uses, server.faults = 1, ["cut 9000"]
    checksums = iter([server.checksum, "0" * 64])
    server.offered = lambda: next(checksums)
    assert refusal() == f"{TARGET} was replaced at Mozilla Data Collective while it was fetched: run again"


def test_a_disk_without_space(server, data):
    server.size = str(10**18)
    assert re.search(
        r"1000000000\.0 GB are still to be fetched, and .* GB are free: free some, or set VISKA_D", refusal()
    )
    server.size = str(len(server.archive))
    (data / f"{TARGET}.{server.checksum[:12]}.part").symlink_to("/dev/full")
    assert ": no space is left on the disk: free some, or set VISKA_DATA to a folder on another disk" in refusal()


def test_releases_that_are_not_there_or_there_twice(server, monkeypatch):
    monkeypatch.setattr(data_collective, "PAGE_SIZE", 2)
    server.datasets += [dataset("cxother", "24.0", "fi"), dataset("cxthird", "9.0"), dataset("cxagain", "25.0")]
    with pytest.raises(UserError, match=r"has no Common Voice 1\.0 in sv-SE \(releases there: 9\.0, 25\.0, 26\.0\)"):
        fetch_release("1.0", LOCALE)
    with pytest.raises(UserError, match=f"several Common Voice 25.0 in sv-SE: set release to one of {ID}, cxagain"):
        fetch_release("25.0", LOCALE)
    with pytest.raises(UserError, match=r"has no Common Voice 25\.0 in de \(releases there: none\)"):
        fetch_release("25.0", "de")


@pytest.mark.parametrize("key", ["", "  ", "my key", "schlüssel", "a\nb"])
def test_a_key_that_is_none_is_told_before_anything_is_asked(server, monkeypatch, key):
    monkeypatch.setenv("MDC_API_KEY", key)
    with pytest.raises(UserError, match=r"MDC_API_KEY (is missing|contains spaces or letters that no key has): "):
        fetch_release("25.0", LOCALE)
    assert not server.links


@pytest.mark.parametrize("line", ["MDC_API_KEY={}", "export MDC_API_KEY = '{}'  ", '# key\nMDC_API_KEY="{}"\nOTHER=1'])
def test_the_key_may_stand_in_dotenv(server, archive, tmp_path, monkeypatch, line):
    monkeypatch.delenv("MDC_API_KEY")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / ".env").write_text(line.format(KEY))
    assert fetch_release("25.0", LOCALE).read_bytes() == archive


def test_nobody_there(data, monkeypatch):
    monkeypatch.setattr(data_collective, "WAITS", (0, 0))
    monkeypatch.setenv("MDC_API_KEY", KEY)
    monkeypatch.setenv("MDC_API_URL", "http://127.0.0.1:1/api")
    assert refusal() == "127.0.0.1 cannot be reached (ConnectionError): check the connection"


def test_ctrl_c_keeps_the_part_and_the_next_run_goes_on(server, settings, data, archive, tmp_path):
    server.faults = ["cut 9000", "hold"]
    (tmp_path / ".env").write_text(f"MDC_API_KEY={KEY}\n")
    values = {"corpus": "common_voice", "common_voice.archive": None, "common_voice.release": "25.0"}
    params = settings({f"download.{key}": value for key, value in values.items()})
    outs = ["--raw", tmp_path / "raw", "--dropped", tmp_path / "dropped.tsv", "--details", tmp_path / "details.json"]
    with Stage(tmp_path, "download", "--params", params, *outs, MDC_API_KEY="") as stage:
        assert server.held.wait(PATIENCE)
        assert KEY not in " ".join(psutil.Process(stage.process.pid).cmdline())
        stage.interrupt()
        assert stage.finish() == (130, ["stopped by Ctrl-C"])
        assert KEY not in stage.said and "secret" not in stage.said
    assert [path.stat().st_size for path in parts(data)] == [9000]
    server.released.set()
    assert fetch_release("25.0", LOCALE).read_bytes() == archive
    assert server.starts[-1] == 9000


def test_two_clones_at_once_download_once(server, data, archive):
    server.faults = ["hold"]
    code = f"from stages.corpora.data_collective import fetch_release; fetch_release('25.0', '{LOCALE}')"
    start = partial(subprocess.Popen, [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with start() as first:
        assert server.held.wait(PATIENCE)
        with start() as second:
            assert second.stderr.readline() == f"another process fetches {data / TARGET}; waiting for it\n"
            server.released.set()
            assert first.wait(PATIENCE) == second.wait(PATIENCE) == 0
    assert (data / TARGET).read_bytes() == archive
    assert len(server.links) == len(server.starts) == 1

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest

from stages.corpora.archive import MAX_CLIP_BYTES
from stages.corpora.local import copy_stream
from stages.corpora.selection import MAX_LINE
from stages.runtime.errors import UserError
from tests.support.release import NAME, ROOT, collect, plain, row, tone


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """The user's data folder."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("VISKA_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize("path", ["../clips/cv_0.mp3", "/etc/passwd", "a/../../b.mp3", "..\\b.mp3", ".", "a\0b.mp3"])
@pytest.mark.parametrize("packed", [True, False])
def test_no_path_leaves_the_archive(data, path, packed):
    release = plain()
    release.tables["train"] = [row(0, "a"), row(1, "a", path=path)]
    release.pack(data) if packed else release.unpack(data / NAME)
    clips, drops, _ = collect(data)
    assert [clip.id for clip in clips["train"]] == ["cv_0"]
    assert drops == {("train", "outside the archive"): 1}


def test_no_link_leaves_the_archive(data):
    secret = data.parent / "secret.mp3"
    secret.write_bytes(tone(7))
    release = plain()
    del release.clips["cv_1.mp3"]
    release.extra = {"cv_1.mp3": str(secret)}
    release.pack(data)
    assert collect(data)[1] == {("train", "outside the archive"): 1}
    root = release.unpack(data / "unpacked")
    (root / "clips" / "cv_1.mp3").symlink_to(secret)
    assert collect(data, archive="unpacked")[1] == {("train", "outside the archive"): 1}


def test_a_linked_folder_is_no_way_out(data):
    plain().unpack(data.parent / "elsewhere")
    (data / "linked").symlink_to(data.parent / "elsewhere")
    assert not collect(data, archive="linked")[1]


NO_ARCHIVE = {
    "starts like a web page": b"<!doctype html><title>Sign in</title>",
    "starts like a zip": b"PK\x03\x04rest",
    "is empty": b"",
    "starts like b'cv-corpus": b"cv-corpus-25.0/".ljust(1024, b"\0"),
    "is not a complete .tar.gz": gzip.compress(b"one text, " * 500),
}


@pytest.mark.parametrize("found", NO_ARCHIVE)
def test_what_is_no_archive_is_named(data, found):
    (data / NAME).write_bytes(NO_ARCHIVE[found])
    with pytest.raises(UserError, match=f"{NAME} .*{found}.*expected a Common Voice release"):
        collect(data)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_cut_archive_is_named_wherever_it_is_cut(data, share, backwards):
    path = plain(20).pack(data, backwards)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"is not a complete \.tar\.gz.*download it again"):
        collect(data)


def test_a_flipped_byte_is_noticed(data):
    path = plain().pack(data)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is not a complete \.tar\.gz"):
        collect(data)


def test_a_missing_archive_says_where_it_was_looked_for_and_how_to_get_it(data):
    (data / "other.tar.gz").touch()
    with pytest.raises(UserError, match=f"{data / NAME} is missing.*other.tar.gz.*mozilladatacollective.*VISKA_DATA"):
        collect(data)
    shutil.rmtree(data)
    with pytest.raises(UserError, match="no such folder"):
        collect(data)


def test_data_lies_in_the_users_cache_by_default(data, monkeypatch):
    monkeypatch.delenv("VISKA_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(data))
    (data / "viska").mkdir()
    plain().pack(data / "viska")
    assert len(collect(data)[0]["train"]) == 6


def test_the_checksum_is_verified(data):
    path = plain().pack(data)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(collect(data, sha256=right)[0]["train"]) == 6
    with pytest.raises(UserError, match=f"has the sha256 {right}, expected {'0' * 64}"):
        collect(data, sha256="0" * 64)


@pytest.mark.parametrize("packed", [True, False])
def test_what_a_release_lacks_is_named(data, packed):
    release = plain()
    path = release.pack(data) if packed else release.unpack(data / NAME)
    with pytest.raises(UserError, match=r"does not contain other\.tsv; it contains dev\.tsv, test\.tsv, train\.tsv"):
        collect(data, train=["train", "other"])
    with pytest.raises(UserError, match="contains the locale sv-SE, and locale is en"):
        collect(data, locale="en")
    assert len(collect(data, locale="sv-SE")[0]["train"]) == 6
    release.columns = ["client_id", "path", "text"]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    release.pack(data) if packed else release.unpack(data / NAME)
    with pytest.raises(UserError, match="lacks the column sentence; it has client_id, path, text"):
        collect(data)
    release.tables = {}
    shutil.rmtree(data)
    data.mkdir()
    release.pack(data) if packed else release.unpack(data / NAME)
    with pytest.raises(UserError, match=r"contains no tables \(found: .*expected a Common Voice release"):
        collect(data)


def test_of_several_locales_one_is_named(data):
    plain().unpack(data / "both")
    (data / "both" / ROOT).rename((data / "both" / ROOT).with_name("en"))
    plain().unpack(data / "both")
    with pytest.raises(UserError, match=r"contains several locales \(en, sv-SE\): set locale to one of them"):
        collect(data, archive="both")
    assert len(collect(data, archive="both", locale="en")[0]["train"]) == 6


def test_a_clip_that_unpacks_to_gigabytes_is_dropped(data):
    release = plain()
    release.clips["cv_3.mp3"] = bytes(MAX_CLIP_BYTES + 1)
    assert release.pack(data).stat().st_size < 1_000_000
    clips, drops, folder = collect(data)
    assert len(clips["train"]) == 5 and drops == {("train", "too large"): 1}
    assert not list(folder.rglob("cv_3*"))


def test_a_sparse_clip_is_as_large_as_it_says(data):
    root = plain().unpack(data / "unpacked")
    os.truncate(root / "clips/cv_3.mp3", 3_000_000_000)
    command = ["tar", "--sparse", "-czf", str(data / NAME), "-C", str(data / "unpacked"), "."]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the system's tar knows no sparse files")
    assert (data / NAME).stat().st_size < 1_000_000
    clips, drops, _ = collect(data)
    assert len(clips["train"]) == 5 and drops == {("train", "too large"): 1}


@pytest.mark.parametrize("packed", [True, False])
def test_a_name_may_be_spelled_in_two_ways(data, packed):
    release = plain()
    composed, decomposed = (unicodedata.normalize(form, "hör.mp3") for form in ("NFC", "NFD"))
    release.tables["train"][0]["path"] = composed
    release.clips[decomposed] = release.clips.pop("cv_0.mp3")
    archive = release.pack(data) if packed else release.unpack(data / "unpacked")
    clips, drops, _ = collect(data, archive=archive.relative_to(data).as_posix())
    assert len(clips["train"]) == 6 and not drops


@pytest.mark.parametrize("packed", [True, False])
def test_a_line_of_megabytes_is_one_row_that_cannot_be_used(data, packed):
    release = plain()
    release.tables["train"].append({"path": "cv_0.mp3", "line": "x" * (2 * MAX_LINE + 5)})
    release.tables["train"].append(row(7, "speaker 0"))
    release.clips["cv_7.mp3"] = release.clips["cv_0.mp3"]
    archive = release.pack(data) if packed else release.unpack(data / "unpacked")
    clips, drops, _ = collect(data, archive=archive.relative_to(data).as_posix())
    assert len(clips["train"]) == 7 and drops == {("train", "malformed row"): 1}


def test_an_interrupted_write_leaves_no_file_under_its_name(tmp_path):
    class Interrupted(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise KeyboardInterrupt
            return super().read(10)

    with pytest.raises(KeyboardInterrupt):
        copy_stream(Interrupted(b"x" * 100), tmp_path / "clip.mp3")
    assert not list(tmp_path.iterdir())

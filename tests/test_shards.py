import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest

from stages.asr import shards
from stages.asr.shards import Entry, Shards, write_shard
from stages.runtime.errors import UserError
from tests.support.material import pack, speech, write_shards

SOUNDS = {f"c{number}": speech(0.3 + 0.1 * number, seed=number) for number in range(5)}


def clips(dtype: str = "uint8") -> list[tuple[Entry, bytes]]:
    return [pack(name, samples, f"Åsa sa {name}", dtype) for name, samples in SOUNDS.items()]


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_same_clips_give_the_same_bytes_in_any_order(tmp_path, dtype):
    first, second, third = (tmp_path / f"{name}.zip" for name in "abc")
    write_shard(first, dtype, 80, clips(dtype))
    write_shard(second, dtype, 80, clips(dtype))
    write_shard(third, dtype, 80, clips(dtype)[::-1])
    assert sha(first) == sha(second) == sha(third)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip", "c.zip"]


def test_another_text_gives_other_bytes(tmp_path):
    write_shard(tmp_path / "a.zip", "uint8", 80, [pack("c", SOUNDS["c0"], "hej")])
    write_shard(tmp_path / "b.zip", "uint8", 80, [pack("c", SOUNDS["c0"], "nej")])
    assert sha(tmp_path / "a.zip") != sha(tmp_path / "b.zip")


@pytest.mark.parametrize("change", [("c0", "nej"), ("c1", "hej")])
def test_a_digest_is_of_what_lies_in_a_shard_not_of_where_it_lies(tmp_path, change):
    for name, (sound, text) in {"a": ("c0", "hej"), "b": ("c0", "hej"), "c": change}.items():
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "00000.zip", "uint8", 80, [pack("c", SOUNDS[sound], text)])
    first, same, other = (Shards(tmp_path / name).digests for name in "abc")
    assert first == same != other and first.keys() == other.keys()


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_each_clip_is_readable_alone_and_in_any_order(tmp_path, dtype):
    read = Shards(write_shards(tmp_path, SOUNDS, dtype))
    assert [entry.id for entry in read.entries] == list(SOUNDS)
    for number in (4, 0, 3, 0):
        name = read.entries[number].id
        entry, data = pack(name, SOUNDS[name], "", dtype)
        mel = read.mel(number)
        assert mel.dtype == np.float32
        assert mel.shape == (80, entry.n_frames)
        assert np.array_equal(mel, shards.unpack_mel(data, entry, dtype, 80))


def test_a_plain_zip_reader_finds_what_the_index_promises(tmp_path):
    write_shard(tmp_path / "00000.zip", "uint8", 80, clips())
    with zipfile.ZipFile(tmp_path / "00000.zip") as archive:
        index = json.loads(archive.read("index.json"))
        assert archive.namelist() == ["index.json", *SOUNDS]
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        members = {name: archive.read(name) for name in SOUNDS}
    assert {key: index[key] for key in ("format", "dtype", "n_mels")} == {"format": 1, "dtype": "uint8", "n_mels": 80}
    for row, (name, samples) in zip(index["clips"], SOUNDS.items(), strict=True):
        assert set(row) == {"id", "text", "speaker", "known_speaker", "seconds", "n_frames", "peak"}
        assert (row["id"], row["text"], row["speaker"], row["known_speaker"]) == (
            name,
            f"Åsa sa {name}",
            "voice",
            "yes",
        )
        assert row["seconds"] == pytest.approx(len(samples) / 16_000, abs=5e-4)
        assert len(members[name]) == row["n_frames"] * 80
        # Frames come first, and the clip's greatest value is the peak.
        frames = np.frombuffer(members[name], np.uint8).reshape(row["n_frames"], 80)
        assert frames.max() == 255
        assert Shards(tmp_path).mel(int(name[1:])).max() == pytest.approx(row["peak"], abs=1e-6)


def test_a_second_of_audio_takes_at_most_8300_bytes(tmp_path):
    write_shards(tmp_path, {f"train-{number:05}": speech(2, seed=number) for number in range(20)})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) / 40 <= 8300


def test_no_shard_stays_open(tmp_path):
    """A large corpus has more shards than a process may have files."""
    read = Shards(write_shards(tmp_path, SOUNDS))
    assert read.mel(0).size and read.mel(4).size
    assert not [file for file in psutil.Process().open_files() if Path(file.path).parent == tmp_path]


@pytest.mark.parametrize(("dtype", "n_mels"), [("float16", 80), ("uint8", 128)])
def test_shards_of_two_kinds_are_refused(tmp_path, dtype, n_mels):
    write_shard(tmp_path / "00000.zip", "uint8", 80, clips())
    write_shard(tmp_path / "00001.zip", dtype, n_mels, [pack("x", SOUNDS["c0"], "", dtype, n_mels)])
    with pytest.raises(UserError, match=rf"{tmp_path} mixes shards .*{dtype}.*{n_mels}.*featurize"):
        Shards(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 5_000])
def test_a_cut_shard_is_named(tmp_path, keep):
    path = write_shards(tmp_path, SOUNDS) / "00001.zip"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{path} is not a readable shard"):
        Shards(tmp_path)


def test_a_flipped_byte_in_a_clip_is_named(tmp_path):
    path = write_shards(tmp_path, SOUNDS) / "00000.zip"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        data[archive.getinfo("c1").header_offset + 1000] ^= 1
    path.write_bytes(data)
    read = Shards(tmp_path)
    assert read.mel(0).shape[0] == 80
    with pytest.raises(UserError, match=rf"clip c1 in {path} is damaged"):
        read.mel(1)


def test_a_shard_of_another_format_is_named(tmp_path):
    path = tmp_path / "00000.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("index.json", '{"format": 2}')
    with pytest.raises(UserError, match=rf"{path} has format 2, expected 1: run the featurize stage"):
        Shards(tmp_path)


@pytest.mark.parametrize("name", [".", "missing"])
def test_a_folder_without_shards_names_the_stage_that_makes_them(tmp_path, name):
    with pytest.raises(UserError, match=rf"{tmp_path / name} contains no shards: run the featurize stage"):
        Shards(tmp_path / name)

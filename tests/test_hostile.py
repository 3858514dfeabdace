"""Mutated model folders, tables and sound files: a sentence or a result, and never another error.

``VISKA_CASES=2000 python -m pytest tests/test_hostile.py`` tries as many of each; the same ones every time.
"""

import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.models import check_decoding
from stages.asr.audio import read_audio
from stages.asr.mel import SAMPLE_RATE
from stages.asr.model import load_model
from stages.asr.recording import open_recording
from stages.corpora import folder as corpus
from stages.corpora.selection import check_clip
from stages.runtime.errors import UserError
from tests.support.material import speech
from tests.support.tones import record_with_ffmpeg

CASES = int(os.environ.get("VISKA_CASES", "40"))
SECONDS = 20.0  # the longest that a sound may last here
JSON_FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json")
many = settings(
    max_examples=CASES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
numbers = st.one_of(st.integers(-(2**70), 2**70), st.sampled_from([0, 1, -1, 2**31, 10**7, 3, 17]), st.floats())
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
# What replaces a piece of bytes: where it begins, as a share of the whole, how long it is, and what stands there then.
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40)), min_size=1, max_size=4)


def told(work: Callable[[], object]) -> None:
    """Do it; where it fails, that is a UserError of one line."""
    try:
        work()
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error)


def edited(data: bytes, changes: list[tuple[float, int, bytes]], within: int | None = None) -> bytes:
    """Bytes with some pieces replaced; within: the first so many alone, where a header lies."""
    for share, length, piece in changes:
        at = int(share * min(len(data), within or len(data)))
        data = data[:at] + piece + data[at + length :]
    return data


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """A model that can say something."""
    return Path(shutil.copytree(tiny, tmp_path_factory.mktemp("whole") / "model"))


@many
@given(data=st.data())
def test_model_folders(whole, tmp_path, data):
    folder = Path(shutil.copytree(whole, tmp_path / "model", dirs_exist_ok=True))
    for _ in range(data.draw(st.integers(1, 3))):
        path = folder / data.draw(st.sampled_from([*JSON_FILES, "tokenizer.json", "model.safetensors"]))
        if path.name in JSON_FILES and data.draw(st.booleans()):
            content: dict[str, Any] = json.loads((whole / path.name).read_text())
            content[data.draw(st.sampled_from(sorted(content)))] = data.draw(values)
            path.write_text(json.dumps(content))
        else:
            path.write_bytes(edited(path.read_bytes(), data.draw(edits), within=3000))

    def load() -> None:
        check_decoding(load_model(folder), folder)

    told(load)


@many
@given(kind=st.sampled_from([".tsv", ".csv", ".jsonl"]), changes=edits, tail=st.binary(max_size=60))
def test_tables(tmp_path, kind, changes, tail):
    rows = [{"path": f"{number}.wav", "text": f"mening, nummer {number}", "speaker": "a"} for number in range(6)]
    if kind == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        separator = "\t" if kind == ".tsv" else ";"
        text = "".join(separator.join(line) + "\n" for line in (rows[0].keys(), *(row.values() for row in rows)))
    table = tmp_path / f"table{kind}"
    table.write_bytes(edited(text.encode(), changes) + tail)

    def read() -> None:
        splits, drops = corpus.read_table(tmp_path, table)
        named = [row for rows in splits.values() for row in rows]
        assert all(row.path and row.text and row.speaker for row in named)
        assert all(drop.reason and drop.detail for drop in drops)

    told(read)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> dict[str, bytes]:
    """One sound in every format, by suffix."""
    folder, files = tmp_path_factory.mktemp("sounds"), {}
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "caf"):
        file = io.BytesIO()
        soundfile.write(file, speech(0.5), SAMPLE_RATE, format=suffix)
        files[suffix] = file.getvalue()
    for suffix, codec in (("m4a", "aac"), ("webm", "libopus")):
        record_with_ffmpeg(folder / f"a.{suffix}", 1, codec, 48_000, 2)
        files[suffix] = (folder / f"a.{suffix}").read_bytes()
    rates = struct.pack("<II", 2**31, 2**31)
    files["au"] = b".snd" + struct.pack(">5I", 24, 2**32 - 1, 3, 1, 1) + rates * 20
    return files


@many
@given(data=st.data())
def test_sound_files(sounds, tmp_path, data):
    suffix = data.draw(st.sampled_from(sorted(sounds)))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(edited(sounds[suffix], data.draw(edits), within=data.draw(st.sampled_from([60, 400, 10_000]))))

    def read() -> None:
        samples = read_audio(path, SAMPLE_RATE, SECONDS)
        assert samples.dtype == np.float32 and len(samples) <= SECONDS * SAMPLE_RATE + 1 and np.isfinite(samples).all()

    def play() -> None:
        with open_recording(path, SECONDS) as recording:
            assert sum(map(len, recording.blocks())) <= SECONDS * SAMPLE_RATE

    told(read)
    told(play)
    rejection = check_clip(path, 0.1, SECONDS)
    assert rejection is None or (rejection.reason in ("empty", "corrupt", "too short", "too long") and rejection.detail)

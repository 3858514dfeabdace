"""Raw clips to shards: what is kept, what is dropped, and that the bytes depend on the clips alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages.asr.shards import Shards
from stages.featurize import featurize
from stages.params import load_params
from stages.runtime.errors import UserError
from tests.support.material import sounds, speech, with_sample, write_params, write_raw


def run(folder: Path, raw: Path, processes: int = 1, **overrides) -> dict:
    params = write_params(folder / "params.yaml", {f"featurize.{key}": value for key, value in overrides.items()})
    settings = load_params(params).featurize
    return featurize(settings, raw, folder / "shards", folder / "details" / "train.json", processes)


def test_clips_fill_shards_in_order(tmp_path):
    counts = run(tmp_path, write_raw(tmp_path / "train", sounds()), clips_per_shard=5)
    assert [path.name for path in sorted((tmp_path / "shards").glob("*.zip"))] == [
        "00000.zip",
        "00001.zip",
        "00002.zip",
    ]
    shards = Shards(tmp_path / "shards")
    assert [entry.id for entry in shards.entries] == sorted(sounds())
    assert counts["clips"] == 12
    assert counts["dropped"] == {}
    assert counts == json.loads((tmp_path / "details/train.json").read_text())


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    raw = write_raw(tmp_path / "train", {f"c{number:03}": speech(0.2, number) for number in range(70)})
    shards = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        run(folder, raw, processes, clips_per_shard=40)
        shards.append([path.read_bytes() for path in sorted((folder / "shards").glob("*.zip"))])
    assert shards[0] == shards[1]


def test_what_cannot_be_used_is_dropped_counted_and_listed(tmp_path):
    raw = write_raw(tmp_path / "train", {name: speech(1.0) for name in "abcdefg"})
    soundfile.write(raw / "audio/a.wav", np.zeros(0), 16_000)
    (raw / "audio/b.wav").write_bytes(b"no sound")
    (raw / "audio/c.wav").unlink()
    soundfile.write(raw / "audio/d.wav", speech(2.5), 16_000)
    for name, value in (("f", np.nan), ("g", np.inf)):
        soundfile.write(raw / f"audio/{name}.wav", with_sample(speech(1.0), value), 16_000, "FLOAT")
    counts = run(tmp_path, raw, max_seconds=2.0)
    assert counts["clips"] == 1
    assert counts["dropped"] == {"corrupt": 3, "empty": 1, "missing": 1, "too long": 1}
    listed = [line.split("\t")[1:3] for line in (tmp_path / "shards/dropped.tsv").read_text().splitlines()[1:]]
    reasons = {"a": "empty", "b": "corrupt", "c": "missing", "d": "too long", "f": "corrupt", "g": "corrupt"}
    assert listed == [[name, reason] for name, reason in reasons.items()]
    (entry,) = Shards(tmp_path / "shards").entries
    assert entry.id == "e" and np.isfinite(entry.peak)


def test_nothing_left_is_an_error(tmp_path):
    raw = write_raw(tmp_path / "train", {"a": speech(1.0)})
    with pytest.raises(UserError, match=r"no clips of .* are left"):
        run(tmp_path, raw, max_seconds=0.5)

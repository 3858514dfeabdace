"""Raw clips to shards: what is kept, what is dropped, and that the bytes depend on the clips alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages.asr.clips import read_clips, write_clips
from stages.asr.shards import Shards
from stages.featurize import MEASURES, describe_features, featurize
from stages.params import load_params
from stages.runtime.errors import UserError
from stages.runtime.files import file_digest
from stages.runtime.packs import Packs
from tests.support.material import sounds, speech, with_sample, write_params, write_raw
from tests.support.process import Stage
from tests.support.training import wait_for


def run(folder: Path, raw: Path, processes: int = 1, kept: Path | None = None, **overrides) -> dict:
    folder.mkdir(exist_ok=True)
    params = write_params(folder / "params.yaml", {f"featurize.{key}": value for key, value in overrides.items()})
    settings = load_params(params).featurize
    packs = Packs(kept / describe_features(settings), 10**9) if kept else None
    return featurize(settings, raw, folder / "shards", folder / "details" / "train.json", processes, packs)


def results(folder: Path) -> dict[str, bytes]:
    """All that a run has written."""
    paths = [*folder.glob("shards/*"), folder / "details/train.json"]
    return {path.name: path.read_bytes() for path in sorted(paths)}


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


# Growth: twelve clips of which seven were there before, and what a later run takes from an earlier one

SOUNDS = sounds()
FEWER = dict(list(SOUNDS.items())[::2] + list(SOUNDS.items())[1:2])


def change_audio(raw: Path) -> None:
    soundfile.write(raw / "audio/clip-03.wav", speech(0.7, seed=99), 16_000, "PCM_16")


def change_text(raw: Path) -> None:
    write_clips(raw, [replace(clip, text=f"{clip.text} nu") for clip in read_clips(raw)])


def rename(raw: Path) -> None:
    """Another corpus beside it gives its clips other ids."""
    write_clips(raw, [replace(clip, id=f"x-{99 - at}") for at, clip in enumerate(read_clips(raw))])


def spoil(raw: Path) -> None:
    (raw / "audio/clip-03.wav").write_bytes(b"no sound")


@pytest.mark.parametrize(
    ("before", "change", "taken", "overrides"),
    [
        (FEWER, None, 7, {}),
        (SOUNDS, None, 12, {}),
        (SOUNDS, change_audio, 11, {}),
        (SOUNDS, change_text, 12, {}),
        (SOUNDS, rename, 12, {}),
        (SOUNDS, spoil, 11, {}),
        (SOUNDS, None, 12, {"clips_per_shard": 12}),
        (SOUNDS, None, 0, {"dtype": "float16"}),
    ],
)
def test_a_later_run_decodes_what_is_new_and_writes_the_bytes_of_a_fresh_one(
    tmp_path, capsys, before, change, taken, overrides
):
    kept = tmp_path / "kept"
    run(tmp_path / "before", write_raw(tmp_path / "few/train", before), kept=kept, clips_per_shard=5)
    raw = write_raw(tmp_path / "train", SOUNDS)
    if change:
        change(raw)
    assert "before" not in capsys.readouterr().err
    overrides = {"clips_per_shard": 5} | overrides
    run(tmp_path / "grown", raw, kept=kept, **overrides)
    said = [line for line in capsys.readouterr().err.splitlines() if "before" in line]
    run(tmp_path / "fresh", raw, **overrides)
    assert results(tmp_path / "grown") == results(tmp_path / "fresh")
    clips = json.loads((tmp_path / "grown/details/train.json").read_text())["clips"]
    assert said == ([f"train: {clips} clips, {taken} kept from before"] if taken else [])


def test_features_go_by_the_settings_that_shape_a_clip(settings):
    changes = {}, {"n_mels": 128}, {"dtype": "float16"}, {"max_seconds": 20}, {"clips_per_shard": 7}
    names = [
        describe_features(load_params(settings({f"featurize.{key}": change[key] for key in change})).featurize)
        for change in changes
    ]
    assert names[4] == names[0]
    assert len(set(names)) == 4


def test_what_is_kept_is_not_decoded(tmp_path):
    """Features that no audio has are taken for the audio of their digest, and for none else."""
    raw = write_raw(tmp_path / "train", {"a": speech(0.3, 1), "b": speech(0.3, 2)})
    settings = load_params(write_params(tmp_path / "params.yaml", {})).featurize
    digest = bytes.fromhex(file_digest(raw / "audio/a.wav", "blake2b"))
    packs = Packs(tmp_path / "kept" / describe_features(settings), 10**6)
    packs.keep([(digest, MEASURES.pack(0.5, 1.0) + bytes(80 * 7))])
    run(tmp_path, raw, kept=tmp_path / "kept")
    first, second = Shards(tmp_path / "shards").entries
    assert (first.seconds, first.n_frames, first.peak) == (0.5, 7, 1.0)
    assert second.seconds == 0.3


@pytest.mark.parametrize("harm", ["deleted", "cut", "flipped", "a file in its place"])
def test_harm_to_what_is_kept_changes_no_byte(tmp_path, capfd, harm):
    raw, kept = write_raw(tmp_path / "train", SOUNDS), tmp_path / "kept"
    run(tmp_path / "before", raw, kept=kept, clips_per_shard=5)
    for path in kept.rglob("*.pack"):
        data = path.read_bytes()
        path.write_bytes({"cut": data[:-9], "flipped": data[:99] + bytes([data[99] ^ 1]) + data[100:]}.get(harm, data))
    if harm in ("deleted", "a file in its place"):
        shutil.rmtree(kept)
    if harm == "a file in its place":
        kept.touch()
    run(tmp_path / "after", raw, kept=kept, clips_per_shard=5)
    said = capfd.readouterr().err
    assert ("9 kept from before" in said) == (harm == "flipped")  # one in each of three packs
    assert said.count("warning") == (harm == "a file in its place")
    run(tmp_path / "fresh", raw, clips_per_shard=5)
    assert results(tmp_path / "after") == results(tmp_path / "fresh")


def start(settings, folder: Path, raw: Path, root: Path) -> Stage:
    """The stage as a process, whose repository is root."""
    folder.mkdir()
    params = settings({"compute.processes": 1, "featurize.clips_per_shard": 20})
    options = {"params": params, "clips": raw, "kept": "kept", "shards": folder / "shards"}
    words = [
        word
        for name, value in (options | {"details": folder / "details/train.json"}).items()
        for word in (f"--{name}", value)
    ]
    return Stage(folder, "featurize", *words, DVC_ROOT=str(root))


def test_runs_that_are_killed_or_share_what_is_kept_write_the_same_bytes(tmp_path, settings, capfd):
    raw = write_raw(tmp_path / "train", {f"c{number:03}": speech(0.5, number) for number in range(200)})
    with start(settings, tmp_path / "killed", raw, tmp_path) as stage:
        wait_for(stage.process, lambda: list(tmp_path.glob("kept/*/*.pack")))
        stage.process.kill()
    assert list(tmp_path.glob("kept/*/*.pack"))
    stages = [start(settings, tmp_path / name, raw, tmp_path) for name in ("one", "other")]
    for stage in stages:
        with stage:
            assert stage.finish()[0] == 0
    run(tmp_path / "fresh", raw, clips_per_shard=20)
    assert results(tmp_path / "one") == results(tmp_path / "other") == results(tmp_path / "fresh")
    capfd.readouterr()
    run(tmp_path / "again", raw, kept=tmp_path / "kept", clips_per_shard=20)
    assert "200 kept from before" in capfd.readouterr().err

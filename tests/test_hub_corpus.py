"""Data sets from a stand-in of the Hugging Face Hub, by the real clients, in a process that has its address."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from stages.asr.clips import SPLITS, read_clips
from tests.support.hub import Hub, serve
from tests.support.material import ROOT
from tests.support.process import Stage
from tests.support.release import tone

OTHER = "f" * 40
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROXIES = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), "")
N_MANY, ROWS_A_FILE = 10_000, 50
COLLECT = """
import json, sys
from dataclasses import astuple
from pathlib import Path
from stages.corpora.hub import collect
from stages.params import Hub
from stages.runtime.errors import UserError
for line in sys.stdin:
    folder, values = json.loads(line)
    try:
        clips, drops = collect(Hub(**values), Path(folder), 1)
    except UserError as error:
        answer = {"error": str(error)}
    else:
        answer = {"clips": {split: [astuple(clip) for clip in clips[split]] for split in clips}}
        answer["drops"] = [astuple(drop) for drop in drops]
    print(json.dumps(answer), flush=True)
"""


def write_parquet(path: Path, audio: list[dict], texts: list[str], speakers: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"audio": audio, "sentence": texts} | ({"who": speakers} if speakers else {})
    pq.write_table(pa.table(columns), path)


def embedded(folder: Path) -> Path:
    """Parquet with its audio inside: five clips of train, and two each of dev and test."""
    for split, numbers in {"train": range(5), "dev": (10, 11), "test": (20, 21)}.items():
        audio = [{"bytes": tone(number), "path": f"{number}.mp3"} for number in numbers]
        texts = [f"Mening nummer {number}." for number in numbers]
        write_parquet(folder / f"data/{split}-0.parquet", audio, texts, [f"{split} {n % 2}" for n in numbers])
    splits = "".join(f"  - {{split: {split}, path: data/{split}-*}}\n" for split in ("train", "dev", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: sv\n  data_files:\n{splits}---\n")
    return folder


def dirty(folder: Path) -> Path:
    """The same with rows that cannot be used: train's first of each kind, and then a good one."""
    good = {"bytes": tone(1), "path": "1.mp3"}
    rows = [
        ("corrupt", {"bytes": b"<html>", "path": "a.mp3"}, "Ett.", "a"),
        ("outside the archive", {"bytes": None, "path": "/etc/passwd"}, "Två.", "a"),
        ("outside the archive", {"bytes": None, "path": "hf://datasets/other/set@main/a.mp3"}, "Tre.", "a"),
        ("missing", {"bytes": None, "path": None}, "Fyra.", "a"),
        ("empty", {"bytes": b"", "path": "a.mp3"}, "Fem.", "a"),
        ("empty sentence", good, " ", "a"),
        ("sentence in test", good, "MENING nummer 20", "a"),
        ("speaker in validation", good, "Sex.", "dev 1"),
        ("", good, "Sju.", ""),
    ]
    embedded(folder)
    _, audio, texts, speakers = zip(*rows, strict=True)
    write_parquet(folder / "data/train-0.parquet", list(audio), list(texts), list(speakers))
    return folder


def audio_folder(folder: Path) -> Path:
    """Audio files, and a table of them beside those of each split."""
    for split, numbers in {"train": range(5), "validation": (10, 11), "test": (20, 21)}.items():
        (folder / split).mkdir(parents=True)
        for number in numbers:
            (folder / split / f"{number}.mp3").write_bytes(tone(number))
        lines = [f'{number}.mp3,"Mening, nummer {number}."' for number in numbers]
        (folder / split / "metadata.csv").write_text("\n".join(["file_name,sentence", *lines, ""]))
    return folder


def zipped(folder: Path) -> Path:
    """The same, each split a zip archive."""
    audio_folder(folder)
    for split in SPLITS:
        shutil.make_archive(str(folder / split), "zip", folder / split)
        shutil.rmtree(folder / split)
    return folder


def many(folder: Path) -> Path:
    """10,000 clips of noise in many files, as large data sets have them."""
    rng = np.random.default_rng(1)
    sample = folder / "sample.wav"
    folder.mkdir()
    soundfile.write(sample, np.zeros(2400), 8000, "PCM_U8")
    head = sample.read_bytes()[:-2400]
    for first in range(0, N_MANY, ROWS_A_FILE):
        numbers = range(first, first + ROWS_A_FILE)
        audio = [{"bytes": head + rng.bytes(2400), "path": f"{number}.wav"} for number in numbers]
        texts = [f"Mening nummer {number}." for number in numbers]
        write_parquet(folder / f"data/train-{first // ROWS_A_FILE:05}.parquet", audio, texts)
    for split in ("validation", "test"):
        write_parquet(folder / f"data/{split}-0.parquet", [{"bytes": tone(1), "path": "1.mp3"}], [f"{split}."])
    sample.unlink()
    return folder


def shared(folder: Path, text: str = "Mening nummer") -> Path:
    """Forty clips of train alone, by twenty speakers."""
    audio = [{"bytes": tone(number), "path": f"{number}.mp3"} for number in range(40)]
    texts, speakers = [f"{text} {number}." for number in range(40)], [str(number // 2) for number in range(40)]
    write_parquet(folder / "data/train-0.parquet", audio, texts, speakers)
    return folder


def script(folder: Path) -> Path:
    """A data set made by a program of its own, as they were once."""
    folder.mkdir()
    (folder / "script.py").write_text("raise SystemExit('this must not run')\n")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    place = tmp_path_factory.mktemp("hub")
    made = {
        "embedded": embedded,
        "dirty": dirty,
        "folder": audio_folder,
        "zipped": zipped,
        "many": many,
        "script": script,
        "shared": shared,
    }
    repos = {f"datasets/team/{name}": {COMMIT: make(place / name)} for name, make in made.items()}
    repos["datasets/team/shared"][OTHER] = shared(place / "corrected", "Rättad text")
    with serve(repos) as server:
        yield server


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return PROXIES | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}


@pytest.fixture(scope="module")
def collect(hub, tmp_path_factory) -> Iterator[Callable[..., dict[str, Any]]]:
    """Call with a data set's name and values that differ: what that process collects, and the folder."""
    place = tmp_path_factory.mktemp("raw")
    process = subprocess.Popen(
        [sys.executable, "-c", COLLECT],
        cwd=ROOT,
        env=os.environ | environment(hub, place / "home"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def call(name: str, limit: int | None = None, **values: object) -> dict[str, Any]:
        folder = place / str(len(list(place.iterdir())))
        folder.mkdir()
        dev = "dev" if name in ("embedded", "dirty") else "validation"
        splits = {
            split: {"splits": [dev if split == "validation" else split], "limit": limit if split == "train" else None}
            for split in SPLITS
        }
        for split in ("validation", "test"):
            splits[split]["share"] = None
        speaker = "who" if dev == "dev" else None
        columns = {"config": None, "audio": "audio", "text": "sentence", "speaker": speaker}
        bounds = {"min_seconds": 0.1, "max_seconds": 30}
        settings = {"id": f"team/{name}", "revision": COMMIT} | columns | bounds | splits | values
        hub.sent, hub.asked = 0, []
        process.stdin.write(json.dumps([str(folder), settings]) + "\n")
        process.stdin.flush()
        found = json.loads(process.stdout.readline())
        if "clips" in found:
            written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
            assert written == {f"{split}/audio/{clip[1]}" for split in SPLITS for clip in found["clips"][split]}
        return found | {"folder": folder}

    with process:
        yield call
        process.stdin.close()


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("name", ["embedded", "folder", "zipped"])
def test_the_clips_are_the_files(collect, name, limit):
    found = collect(name, limit)
    comma = "" if name == "embedded" else ","
    for split, numbers in {"train": range(limit or 5), "validation": (10, 11), "test": (20, 21)}.items():
        clips = found["clips"][split]
        assert [clip[0] for clip in clips] == [f"{split}-{at:06}" for at in range(len(numbers))]
        assert [clip[2] for clip in clips] == [f"Mening{comma} nummer {number}." for number in numbers]
        audio = [(found["folder"] / split / "audio" / clip[1]).read_bytes() for clip in clips]
        assert audio == [tone(number) for number in numbers]
    assert [drop[2] for drop in found["drops"]] == ["beyond the limit"] * (2 if limit else 0)
    assert {clip[3] for clip in found["clips"]["test"]} == ({"unknown"} if comma else {"test 0", "test 1"})


def test_a_limit_fetches_little(collect, hub):
    size = sum(path.stat().st_size for path in hub.repos["datasets/team/many"][COMMIT].rglob("*.parquet"))
    few = collect("many", 100)
    assert hub.sent <= 0.05 * size
    more = collect("many", 120)
    assert [clip[0] for clip in few["clips"]["train"]] == [f"train-{number:06}" for number in range(100)]
    assert more["clips"]["train"][:100] == few["clips"]["train"]


@pytest.mark.parametrize("limit", [None, 1])
def test_what_cannot_be_used_is_dropped_with_its_reason(collect, limit):
    found = collect("dirty", limit)
    assert [clip[:4] for clip in found["clips"]["train"]] == [["train-000008", "train-000008.mp3", "Sju.", "unknown"]]
    assert sorted((drop[2], drop[0]) for drop in found["drops"]) == sorted(
        (reason, "train")
        for reason in (
            *("corrupt", "empty", "empty sentence", "missing", "outside the archive", "outside the archive"),
            *("sentence in test", "speaker in validation"),
        )
    )
    assert all(str(found["folder"]) not in drop[3] for drop in found["drops"])


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("gone", {}, "download.hub: the only configuration of team/gone at COMMIT cannot be had: "),
        ("embedded", {"revision": "e" * 40}, f"download.hub: the only configuration of team/embedded at {'e' * 40} "),
        ("embedded", {"config": "fi"}, "download.hub: configuration fi of team/embedded at COMMIT cannot be had: "),
        (
            "embedded",
            {"test": {"splits": ["tst"], "limit": None, "share": None}},
            "download.hub: split tst of team/embedded at COMMIT",
        ),
        ("embedded", {"text": "txt"}, "download.hub: team/embedded has no column txt; split test has audio, sentence"),
        ("folder", {"audio": "sound"}, "download.hub: team/folder has no column sound; split test has audio, sentence"),
        ("script", {}, "download.hub: the only configuration of team/script at COMMIT cannot be had: Dataset scripts"),
    ],
)
@pytest.mark.parametrize("limit", [None, 2])
def test_what_is_not_there_is_told_in_one_line(collect, name, values, said, limit):
    error = collect(name, limit, **values)["error"]
    assert "\n" not in error
    assert error.startswith(said.replace("COMMIT", COMMIT))


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("speaker", [None, "who"])
def test_splits_that_there_are_not_are_shares_of_train(collect, limit, speaker):
    held = {split: {"splits": [], "limit": None, "share": 0.35} for split in ("validation", "test")}
    clips, every = (collect("shared", n, **held, speaker=speaker)["clips"] for n in (limit, None))
    for split in SPLITS:
        assert clips[split] == every[split][: limit if split == "train" else None]
    assert sum(map(len, every.values())) == 40
    keys = [{clip[3 if speaker else 2] for clip in every[split]} for split in SPLITS]
    assert len(set.union(*keys)) == sum(map(len, keys)) and all(keys)


def test_a_share_that_comes_to_nothing_is_told(collect):
    held = {split: {"splits": [], "limit": None, "share": 1e-9} for split in ("validation", "test")}
    assert "the shares give none to validation: change validation.share" in collect("shared", **held)["error"]


def test_a_hub_that_hangs_up_is_told_in_one_line(collect, hub):
    hub.broken = {"info": 0}
    try:
        error = collect("embedded", revision="d" * 40)["error"]
    finally:
        hub.broken = {}
    assert "\n" not in error and f"team/embedded at {'d' * 40} cannot be had: " in error


def test_without_the_hub_no_other_commits_clips_are_taken(collect, hub):
    shared = {"splits": [], "share": 0.1, "limit": None}
    values = {"speaker": "who", "validation": shared, "test": shared}
    assert "clips" in collect("shared", **values)
    hub.broken = dict.fromkeys(("resolve", "info", "tree", "paths_info"), 0)
    try:
        error = collect("shared", revision=OTHER, **values)["error"]
        assert "clips" in collect("shared", **values)
    finally:
        hub.broken = {}
    assert error.endswith(f"the Hub does not answer, and the cache has only {COMMIT}")


def test_the_stage(hub, settings, tmp_path):
    values = {"id": "team/folder", "revision": COMMIT, "config": None, "text": "sentence"}
    params = settings({"download.corpus": "hub"} | {f"download.hub.{key}": value for key, value in values.items()})
    outs = ["--raw", tmp_path / "raw", "--dropped", tmp_path / "dropped.tsv", "--details", tmp_path / "details.json"]
    with Stage(tmp_path, "download", "--params", params, *outs, **environment(hub, tmp_path / "home")) as stage:
        assert stage.finish()[0] == 0
    assert [clip.text for clip in read_clips(tmp_path / "raw/test")] == ["Mening, nummer 20.", "Mening, nummer 21."]

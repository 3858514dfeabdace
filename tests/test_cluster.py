"""Work on clusters: lost workers, workers unlike this machine, and the same bytes as one process makes."""

import importlib.util
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from stages.asr.clips import Clip, Drop, read_clips, write_clips
from stages.featurize import extract_features, featurize
from stages.params import load_params
from stages.runtime.cluster import Tasks, make_runner
from stages.runtime.errors import UserError
from stages.runtime.pool import Workers, parallel_map
from tests.support.cluster import OneWorker, dask_cluster
from tests.support.killing import killing
from tests.support.material import ROOT, speech, write_raw
from tests.support.process import Stage
from tests.support.training import wait_for

SETTINGS = load_params(ROOT / "params.yaml").featurize


def needs(package: str):
    reason = f"{package} is not installed: pip install -c constraints.txt -e '.[scale]'"
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=reason)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Seventy clips, in three tasks."""
    names = (f"c{number:03}" for number in range(70))
    return write_raw(tmp_path_factory.mktemp("raw") / "train", {name: speech(0.2, at) for at, name in enumerate(names)})


def features(raw: Path, workers: Workers | int, deaths: int, place: Path):
    """The features of all clips, while workers die."""
    function = partial(killing, place, deaths, partial(extract_features, SETTINGS, raw, None))
    return list(parallel_map(function, read_clips(raw), workers))


@needs("distributed")
def test_dask_loses_workers_and_no_byte(raw, tmp_path):
    alone = features(raw, 1, 0, tmp_path)
    with dask_cluster(tmp_path, workers=3) as address:
        workers = Workers(backend="dask", address=address)
        assert features(raw, workers, 1, tmp_path) == alone
        assert (tmp_path / "death-0").exists()
        with pytest.raises(UserError, match="c040 ends every worker that gets it"):
            features(raw, workers, 3, tmp_path)


@needs("ray")
def test_ray_loses_a_worker_and_no_byte(raw, tmp_path):
    alone = features(raw, 1, 0, tmp_path)
    assert features(raw, Workers(2, "ray"), 1, tmp_path) == alone
    assert (tmp_path / "death-0").exists()


@needs("distributed")
def test_a_local_cluster_makes_the_same_shards(settings, raw, tmp_path):
    with start_featurize(settings, raw, tmp_path) as stage:
        assert stage.finish() == (0, [])
    featurize(SETTINGS, raw, tmp_path / "alone", tmp_path / "alone.json", 1)
    made = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("shards", "alone")]
    assert made[0] == made[1]


@needs("distributed")
def test_a_stop_of_a_cluster_at_work_is_told_in_one_line(settings, tmp_path):
    raw = write_raw(tmp_path / "train", {"c": speech(10.0)})
    write_clips(raw, [Clip(f"c{number:04}", "c.wav", "hej", "voice") for number in range(5000)])
    with start_featurize(settings, raw, tmp_path, **{"featurize.clips_per_shard": 1}) as stage:
        wait_for(stage.process, (tmp_path / "shards/00000.zip").exists)
        stage.interrupt()
        assert stage.finish() == (130, ["stopped by Ctrl-C"])
    assert not (tmp_path / "d.json").exists()


def start_featurize(settings, raw: Path, folder: Path, **values) -> Stage:
    """The stage as a process, on a cluster of two that it starts itself."""
    params = settings({"compute.backend": "dask", "compute.processes": 2} | values)
    arguments = ["--params", params, "--clips", raw, "--shards", folder / "shards", "--details", folder / "d.json"]
    return Stage(ROOT, "featurize", *arguments)


@pytest.mark.parametrize("lack", ["nothing", "checkout", "sources", "data"])
def test_a_worker_unlike_this_machine_is_named(tmp_path, monkeypatch, lack):
    for place in ("here", "there"):
        write_raw(tmp_path / place / "data/train", {name: speech(0.3) for name in "ab"})
        shutil.copytree(ROOT / "stages", tmp_path / place / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    there = tmp_path / "there"
    if lack == "checkout":
        shutil.rmtree(there / "stages")
    elif lack == "sources":
        (there / "stages/asr/mel.py").write_text((ROOT / "stages/asr/mel.py").read_text() + "# edited\n")
    elif lack == "data":
        (there / "data/train/audio/b.wav").unlink()  # no worker's first
    monkeypatch.chdir(tmp_path / "here")
    raw = Path("data/train")
    function = partial(extract_features, SETTINGS, raw, None)
    tasks = Tasks(OneWorker(there, make_runner()), function, lambda output: isinstance(output, Drop), lambda it: it)
    outputs = tasks.submit(read_clips(raw))
    if lack == "nothing":
        assert [made.entry.id for made in outputs()] == ["a", "b"]
        return
    said = {"checkout": "finds No module named 'stages' in", "sources": "has another stages.featurize", "data": "of b"}
    with pytest.raises(UserError, match=rf"worker \d+ on .*{said[lack]}"):
        outputs()


def kill_own_process(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told_with_a_remedy():
    with pytest.raises(UserError, match=r"was killed, .* lower compute\.processes"):
        list(parallel_map(kill_own_process, [1], 1))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"compute\.backend: ray is not installed: pip install .*scale"):
        next(parallel_map(str, [1], Workers(backend="ray")))

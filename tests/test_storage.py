"""Shards in object storage: the real client of S3 against a stand-in, alone and under a real DVC."""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import fsspec
import numpy as np
import pytest
from ruamel.yaml import YAML
from torch.utils.data import DataLoader

from stages.asr.batches import BatchItem, ClipDataset
from stages.asr.shards import Shards
from stages.params import load_params
from stages.runtime import storage
from stages.runtime.command import report_error
from stages.runtime.errors import UserError
from stages.runtime.storage import RemoteFolder
from stages.train import Paths, train
from tests.support.bucket import Bucket, serve_bucket
from tests.support.material import speech, write_params, write_shards
from tests.support.repository import run, set_params

URL = "s3://lab/train"
SHORT = {"train.batch_size": 4, "train.warmup_steps": 1, "train.max_steps": 4, "train.log_every": 1}
SHORT |= {"train.eval_every": 2, "train.save_every": 2}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Bucket]:
    """The bucket ``lab``, in which ``train`` has 24 clips of a second in two shards."""
    folder = tmp_path_factory.mktemp("storage")
    write_shards(folder / "lab/train", {f"c{number:02}": speech(1, seed=number) for number in range(24)})
    with serve_bucket(folder) as bucket:
        yield bucket


@pytest.fixture
def bucket(served, monkeypatch) -> Iterator[Bucket]:
    """The same with all as it was, which this process's client finds."""
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    storage.file_system.cache_clear()
    served.faults, served.asked = [], []
    served.sent.clear()
    return served


@pytest.fixture
def local(bucket) -> Path:
    return bucket.folder / "lab/train"


def test_a_bucket_reads_as_the_folder_that_it_holds(bucket, local):
    here, there = Shards(local), Shards(f"{URL}/")
    assert there.entries == here.entries and there.digests == here.digests
    assert len(bucket.asked) == 5  # the list, and of each shard its directory and its index
    assert bucket.sent.total() < 0.1 * sum(path.stat().st_size for path in local.iterdir())
    for number in (20, 3):
        bucket.sent.clear()
        assert np.array_equal(there.mel(number), here.mel(number))
        assert bucket.sent.total() == here.entries[number].n_frames * here.n_mels


@pytest.mark.parametrize("faults", [["cut"], ["reset"], ["503"], ["cut", "503", "reset"]])
def test_trouble_that_passes_is_waited_for(bucket, local, faults):
    there = Shards(URL)
    bucket.faults = faults
    assert np.array_equal(there.mel(5), Shards(local).mel(5))
    assert not bucket.faults


@pytest.mark.parametrize(
    ("place", "fault", "said"),
    [
        ("s3://nobodys/train", "", "NoSuchBucket: see that bucket and folder are named rightly"),
        ("s3://lab/nothing", "", "lab/nothing: see that bucket and folder are named rightly"),
        ("s3://lab", "", "contains no shards: copy it there again"),
        (URL, "403", "AccessDenied: see that keys are set"),
        ("gs://lab/train", "", "pip install 'dvc[gs]'"),
        ("sea://lab/train", "", "Protocol not known: sea"),
    ],
)
def test_trouble_that_lasts_is_a_line(bucket, place, fault, said):
    bucket.faults = [fault] * 2
    with pytest.raises(UserError) as raised:
        Shards(place)
    message = str(raised.value)
    assert place in message and said in message and "\n" not in message


def test_missing_keys_are_named(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match="Unable to locate credentials: see that keys are set"):
        Shards(URL)


class Moody(fsspec.AbstractFileSystem):
    """Fails as often as it is told."""

    protocol, failures = "moody", 0

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        if Moody.failures:
            Moody.failures -= 1
            raise ConnectionResetError("gone")
        return b"0123456789"[start:end]


def test_a_client_that_does_not_try_again_is_asked_again_for_a_while(monkeypatch):
    fsspec.register_implementation("moody", Moody, clobber=True)
    monkeypatch.setattr(storage, "FIRST_WAIT", 1e-3)
    Moody.failures = 4
    assert RemoteFolder("moody://lab").read("file", 2, 3) == b"234"
    monkeypatch.setattr(storage, "PATIENCE", 0)
    Moody.failures = 4
    with pytest.raises(UserError, match="moody://lab cannot be read: gone"):
        RemoteFolder("moody://lab").read("file", 2, 3)
    assert Moody.failures == 3


def test_a_changed_object_is_named(bucket, local):
    path, there = local / "00001.zip", Shards(URL)
    whole = path.read_bytes()
    try:
        path.write_bytes(bytes(byte ^ 1 for byte in whole))
        with pytest.raises(UserError, match=f"clip c20 in {URL}/00001.zip is damaged: copy it there again"):
            there.mel(20)
    finally:
        path.write_bytes(whole)


def test_processes_that_read_beside_training_have_clients_of_their_own(bucket, local, model):
    """They are forks of one whose client has been used, which does not outlive that."""
    batches = [[BatchItem((number, number + 1), 400, None) for number in range(at, at + 6)] for at in range(0, 18, 6)]
    read = []
    for place, workers in ((local, 0), (URL, 0), (URL, 2)):
        clips = ClipDataset(Shards(place), model, 448)
        read.append(list(DataLoader(clips, batch_sampler=batches, collate_fn=list, num_workers=workers)))
    for examples in read[1:]:
        for mine, theirs in zip(chain(*read[0]), chain(*examples), strict=True):
            assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


def test_trouble_that_one_of_them_has_is_a_line(bucket, local, model, capsys):
    clips = ClipDataset(Shards(URL), model, 448)
    bucket.faults = ["403"]
    with pytest.raises(UserError) as raised:
        list(DataLoader(clips, batch_sampler=[[BatchItem((0,), 400, None)]], collate_fn=list, num_workers=1))
    assert report_error(raised.value) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Error: {URL} cannot be read: AccessDenied")


def test_a_run_of_a_disk_is_the_same_run_of_a_bucket(bucket, local, tiny, tmp_path, capsys):
    outs = [tmp_path / name for name in ("checkpoints", "runs", "tuned", "curves", "d.tsv", "m.json", "d.json")]
    params = load_params(write_params(tmp_path / "params.yaml", SHORT))

    def weights(place: str | Path) -> bytes:
        train(params.train, params.compute, params.checkpoints, Paths(place, place, tiny, *outs))
        return (tmp_path / "tuned/model.safetensors").read_bytes()

    whole = weights(local)
    capsys.readouterr()
    assert weights(URL) == whole
    assert "at step 4 of 4" in capsys.readouterr().err


def test_train_from_a_bucket_under_dvc(finished, tmp_path):
    """What one machine published another trains on, fetching what it reads, and DVC knows when that changes."""
    run(tmp_path, "git", "clone", "-q", str(finished), "repo")
    repo, features = tmp_path / "repo", tmp_path / "storage/lab/features"
    shutil.copytree(finished / "data/features", features)
    places = {f"features.{split}": f"s3://lab/features/{split}" for split in ("train", "validation")}
    set_params(repo, places)
    with serve_bucket(tmp_path / "storage") as bucket:
        bucket.faults = ["cut", "503", "reset"]
        printed = run(repo, "dvc", "repro", "train", **bucket.environment)
        assert [line for line in printed.splitlines() if line.startswith("Running stage")] == [
            "Running stage 'pretrained':",
            "Running stage 'train':",
        ]
        assert not bucket.faults and not (repo / "data/features/train").exists()
        for model in ("pretrained", "tuned"):
            for path in (finished / "models" / model).iterdir():
                assert (repo / "models" / model / path.name).read_bytes() == path.read_bytes()
        sent = sum(size for name, size in bucket.sent.items() if "/features/train/" in name)
        assert sent < sum(path.stat().st_size for path in (features / "train").glob("*.zip"))
        lock = YAML(typ="safe").load(repo / "dvc.lock")["stages"]["train"]
        assert [dep["path"] for dep in lock["deps"] if dep["path"].startswith("s3:")] == list(places.values())
        bucket.sent.clear()
        assert "up to date" in run(repo, "dvc", "status", "train", **bucket.environment)
        assert not bucket.sent  # DVC compares the list
        shutil.copy(features / "train/00000.zip", features / "train/00001.zip")
        printed = run(repo, "dvc", "repro", "--dry", "train", **bucket.environment)
        assert "Running stage 'train'" in printed

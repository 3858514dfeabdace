"""Fixtures that several tests share: real parts, tiny, made offline in a moment."""

import fcntl
import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before Hugging Face's libraries are imported: no test reaches for the Hub
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as tools.convert has it, for tests that import ONNX Runtime before that
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are slower on several

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from stages.asr.model import SpeechModel, load_model
from stages.asr.shards import Shards
from stages.params import load_params
from stages.pretrained import pretrained
from tests.support.drive import Drive, serve_drive
from tests.support.material import TINY, allow, sounds, write_params, write_shards
from tests.support.repository import finish_pipeline

LONGEST = ("test_pipeline", "test_resume", "test_mirror", "test_sweep")  # begins with those that take longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin first, so that the workers end together."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """Spare the collector what all imports left, for each training and each test's end collects garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def settings(tmp_path) -> Callable[..., Path]:
    """Call with {"dotted.key": value}: the repository's params.yaml with these values, as a temporary file."""
    return lambda overrides={}: write_params(tmp_path / "params.yaml", overrides)


@pytest.fixture(scope="session")
def shards_folder(tmp_path_factory) -> Path:
    """Twelve clips of 0.2 to 1.96 s in two shards, long and short ones in turn."""
    return write_shards(tmp_path_factory.mktemp("shards") / "train", sounds())


@pytest.fixture(scope="session")
def shards(shards_folder) -> Shards:
    return Shards(shards_folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, shards_folder) -> Path:
    """The folder of a tiny Whisper from scratch, with a window of 2 s."""
    folder = tmp_path_factory.mktemp("tiny")
    whisper = load_params(write_params(folder / "params.yaml", TINY)).whisper
    pretrained(whisper, shards_folder, folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Path:
    """A repository in which the whole pipeline has run, made once for all of pytest's workers; copy it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (base / "pipeline.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder, made = base / "pipeline/repo", base / "pipeline/made"
        if not made.exists():
            finish_pipeline(folder)
            made.touch()
    return folder


@pytest.fixture(scope="module")
def finished(pipeline, tmp_path_factory) -> Path:
    """The module's own copy of it."""
    return shutil.copytree(pipeline, tmp_path_factory.mktemp("finished") / "repo", symlinks=True)


@pytest.fixture
def model(tiny) -> SpeechModel:
    """The tiny Whisper, loaded anew for each test to turn as it likes."""
    return load_model(tiny)


@pytest.fixture
def talking(model) -> SpeechModel:
    """The tiny Whisper with weights so large that what it says, in bytes, and when it ends depend on the clip."""
    generator, config = torch.Generator().manual_seed(4), model.whisper.generation_config
    with torch.no_grad():
        for name, weights in model.whisper.named_parameters():
            if "norm" not in name:
                weights.copy_(torch.randn(weights.shape, generator=generator) * 0.5)
        model.whisper.model.decoder.embed_tokens.weight[config.eos_token_id] *= 2  # to end now and then
    allow(model, set(range(256)) | {config.eos_token_id})
    return model


@pytest.fixture
def drive(tmp_path) -> Iterator[Drive]:
    """Google Drive's stand-in, which has understood all that it was asked."""
    with serve_drive(tmp_path / "authority") as drive:
        yield drive
    assert drive.errors == []

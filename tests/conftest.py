"""Fixtures that several tests share: real parts, tiny, made offline in a moment."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before Hugging Face's libraries are imported: no test reaches for the Hub
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are slower on several

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

"""The demo's own server on the loopback, with tiny models that say something else of each recording."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from gradio_client import Client

from app import page, server, video
from app.models import Models, repository_models
from app.transcriber import FetchAudio
from stages.asr.mel import SAMPLE_RATE
from stages.asr.model import SpeechModel, load_model, save_model
from stages.corpora.examples import Example
from stages.corpora.synthetic import collect
from stages.params import App, Synthetic, load_params
from stages.runtime.files import write_json
from tests.support.material import ROOT, allow, write_params

PATIENCE = 60  # seconds until what should happen counts as never happening
LETTERS = "abdefgiklmnoprstuv "


@dataclass(frozen=True)
class Demo:
    """A page that is open: its address, and what it was made of."""

    url: str
    models: Models
    settings: App
    corpus: Path
    params: Path


@contextmanager
def serve(
    models: Models, folder: Path, fetch_audio: FetchAudio = video.fetch_audio, improve: bool = True, **changes: int
) -> Iterator[Demo]:
    """Open the page of these models; ``changes`` to the settings of params.yaml may be beyond what that allows.

    fetch_audio: of a video. The page has "Improve it", which keeps its clips in ``folder``, where ``improve`` is set.
    """
    params = write_params(folder / "params.yaml", {})
    settings = load_params(params).app
    settings = settings.model_copy(update=changes)
    corpus = folder / "recordings"
    with server.private_folder():
        examples = [Example(path, path.stem) for path in folder.glob("*.wav")]
        blocks = page.build_page(models, settings, corpus if improve else None, params, examples, fetch_audio)
        with server.serve_page(blocks, settings, "127.0.0.1", free_port(), share=False) as url:
            yield Demo(url, models, settings, corpus, params)


def connect(url: str) -> Client:
    """A program that calls the demo, and is patient."""
    return Client(url, verbose=False, httpx_kwargs={"timeout": PATIENCE})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def babbling_models(tiny: Path, root: Path) -> Models:
    """A repository with two models made of ``tiny``, ``tuned`` measured and ``pretrained`` not."""
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    for name, seed in (("tuned", 4), ("pretrained", 5)):
        save_model(babbler(tiny, seed), root / "models" / name)
    write_json(root / "metrics/evaluate/tuned.json", {"wer": 12.3, "wer_low": 11.0, "wer_high": 14.5})
    write_json(root / "metrics/details/featurize/train.json", {"clips": 3000})
    shutil.copy(ROOT / "params.yaml", root)
    return repository_models(root, 2)


def babbler(tiny: Path, seed: int) -> SpeechModel:
    """The tiny Whisper with weights so large that what it says, in letters, depends on every sound."""
    model = load_model(tiny)
    generator, config = torch.Generator().manual_seed(seed), model.whisper.generation_config
    with torch.no_grad():
        for name, weights in model.whisper.named_parameters():
            if "norm" not in name:
                weights.copy_(torch.randn(weights.shape, generator=generator) * 0.5)
        model.whisper.model.decoder.embed_tokens.weight[config.eos_token_id] *= 2  # to end now and then
    letters = {token for letter in LETTERS for token in model.tokenizer.encode(letter, add_special_tokens=False)}
    allow(model, letters | {config.eos_token_id})
    return model


def spoken(folder: Path, n_clips: int) -> list[Path]:
    """Sentences spoken by espeak-ng, which a voice detector takes for speech: wav files of 1 to 4 s."""
    collect(Synthetic(train=n_clips, validation=1, test=1, seed=1), folder, processes=1)
    return sorted((folder / "train/audio").glob("*.wav"))


def long_recording(clips: list[Path], path: Path, seconds: float) -> Path:
    """All the clips, over and over with pauses, for so long."""
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    once = np.concatenate([part for clip in clips for part in (soundfile.read(clip, dtype="float32")[0], pause)])
    soundfile.write(path, np.resize(once, round(seconds * SAMPLE_RATE)), SAMPLE_RATE)
    return path


def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another thread."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)

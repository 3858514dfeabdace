"""Sounds, clips, shards and settings made on the spot."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from ruamel.yaml import YAML

from stages.asr.clips import Clip, write_clips
from stages.asr.mel import SAMPLE_RATE, log_mel
from stages.asr.model import SpeechModel
from stages.asr.shards import Entry, pack_mel, write_shard

ROOT = Path(__file__).parents[2]
TEXTS = ("hej på dig", "åsa köper ägg", "Är det kallt?", "båten går klockan åtta", "tack", "Ön ligger där, långt ut.")
TINY = {
    "whisper.scratch.d_model": 16,
    "whisper.scratch.layers": 1,
    "whisper.scratch.heads": 2,
    "whisper.scratch.seconds": 2,
    "whisper.scratch.merges": 0,
}


def speech(seconds: float, seed: int = 1) -> np.ndarray:
    """Something like speech: harmonics of a gliding pitch in syllables, over faint noise; (n,) float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = rng.uniform(90, 220) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.5, 1) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    voice = sum(np.sin(number * phase) / number for number in range(1, 16))
    syllables = np.sin(2 * np.pi * rng.uniform(2, 5) * time).clip(0) ** 0.5
    return (0.2 * voice * syllables + 0.001 * rng.standard_normal(len(time))).astype(np.float32)


def with_sample(samples: np.ndarray, value: float) -> np.ndarray:
    """The same samples but for one in the middle."""
    changed = samples.copy()
    changed[len(changed) // 2] = value
    return changed


def sounds() -> dict[str, np.ndarray]:
    """Twelve of them by id, 0.2 to 1.96 s long, long and short ones in turn."""
    return {f"clip-{number:02}": speech(0.2 + 0.16 * (number * 5 % 12), seed=number) for number in range(12)}


def write_raw(folder: Path, clips: dict[str, np.ndarray], texts: tuple[str, ...] = TEXTS) -> Path:
    """A split as download leaves it: clips.tsv and a wav a sound, by id; texts are taken in turn."""
    (folder / "audio").mkdir(parents=True)
    for name, samples in clips.items():
        soundfile.write(folder / "audio" / f"{name}.wav", samples, SAMPLE_RATE, "PCM_16")
    names = enumerate(clips)
    write_clips(folder, [Clip(name, f"{name}.wav", texts[at % len(texts)], f"voice{at % 3}") for at, name in names])
    return folder


def pack(name: str, samples: np.ndarray, text: str, dtype: str = "uint8", n_mels: int = 80) -> tuple[Entry, bytes]:
    """One clip as a shard wants it."""
    mel = log_mel(samples, n_mels)
    data, peak = pack_mel(mel, dtype)
    return Entry(name, text, "voice", "yes", round(len(samples) / SAMPLE_RATE, 3), mel.shape[1], peak), data


def write_shards(
    folder: Path, clips: dict[str, np.ndarray], dtype: str = "uint8", n_mels: int = 80, texts: tuple[str, ...] = TEXTS
) -> Path:
    """Sounds by id as one split's folder, in two shards where there are several; texts are taken in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = [
        pack(name, samples, texts[at % len(texts)], dtype, n_mels) for at, (name, samples) in enumerate(clips.items())
    ]
    half = -(-len(clips) // 2)
    for number, part in enumerate((clips[:half], clips[half:])):
        if part:
            write_shard(folder / f"{number:05}.zip", dtype, n_mels, part)
    return folder


def write_params(path: Path, overrides: dict[str, object]) -> Path:
    """The repository's params.yaml with other values at dotted keys, ``...`` removing one."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(ROOT / "params.yaml") | yaml.load(ROOT / "recipes" / "default.yaml")  # whatever recipe is set
    for place, value in overrides.items():
        *parents, key = place.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    yaml.dump(values, path)
    return path


def allow(model: SpeechModel, tokens: set[int]) -> None:
    """Let a model say these tokens alone."""
    config = model.whisper.generation_config
    config.suppress_tokens = [token for token in range(len(model.tokenizer)) if token not in tokens]


def compiled_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch believe that it was compiled for CUDA, as PyPI's is for Linux, whatever hardware there is."""
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

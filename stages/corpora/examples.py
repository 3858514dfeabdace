"""Example sounds: a few clips of a test split, which no training heard, for somebody to click on."""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from stages.asr.clips import Clip, read_clips, write_clips
from stages.runtime.errors import UserError

N_EXAMPLES = 3


@dataclass(frozen=True)
class Example:
    """A sound, and what is said in it."""

    path: Path
    text: str


def read_examples(split: Path) -> list[Example]:
    """The first few clips of a split's folder, as ``download`` writes it; [] where there is no such folder."""
    clips = read_clips(split) if (split / "clips.tsv").is_file() else []
    examples = [Example(split / "audio" / clip.audio, clip.text) for clip in clips[:N_EXAMPLES]]
    return [example for example in examples if example.path.is_file()]


def write_examples(seed: int, split: Path) -> None:
    """The same of the built-in corpus of a seed, spoken anew: a split's folder with its table and its sounds.

    Raises UserError where espeak-ng fails.
    """
    import soundfile  # a Space has its examples beside it

    from stages.corpora.synthetic import FILE_RATE

    (split / "audio").mkdir(parents=True, exist_ok=True)
    spoken = speak_examples(seed)
    for clip, samples in spoken:
        soundfile.write(split / "audio" / clip.audio, samples, FILE_RATE, "PCM_16", format="WAV")
    write_clips(split, [clip for clip, _ in spoken])


@cache
def speak_examples(seed: int) -> list[tuple[Clip, np.ndarray]]:
    """The clips, and their (n_samples,) int16, spoken in a process of its own: espeak-ng remembers what it said."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(speak, seed).result()
        except BrokenProcessPool:
            raise UserError("espeak-ng ended its process: there are no example sounds") from None


def speak(seed: int) -> list[tuple[Clip, np.ndarray]]:
    import espeakng_loader

    from stages.corpora.synthetic import Espeak, plan_split, render, short_data_path

    with short_data_path(Path(espeakng_loader.get_data_path())) as data:
        espeak = Espeak(data)
        return [
            (Clip(clip.id, f"{clip.id}.wav", clip.text, clip.voice), render(espeak.say(clip), espeak.sample_rate, clip))
            for clip in plan_split("test", N_EXAMPLES, seed, set())
        ]

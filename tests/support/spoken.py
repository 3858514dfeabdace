"""Real speech from espeak-ng, and the quiet of a room around it."""

from functools import cache
from pathlib import Path

import espeakng_loader
import numpy as np

from stages.asr.mel import SAMPLE_RATE
from stages.corpora.synthetic import Espeak, PlannedClip, render, short_data_path

SENTENCES = (
    "hej på dig",
    "färjan från visby kommer halv två",
    "solen skiner",
    "den röda soffan är stor",
    "tack så mycket",
)


@cache
def spoken_sentences() -> tuple[np.ndarray, ...]:
    """The sentences, each with 80 ms before and after, over faint noise: (n,) float32 at 16 kHz, not to be changed."""
    with short_data_path(Path(espeakng_loader.get_data_path())) as data:
        espeak = Espeak(data)
        plan = [PlannedClip("test", str(n), text, "sv", 50, 170, -26, 30, n + 1) for n, text in enumerate(SENTENCES)]
        clips = [render(espeak.say(clip), espeak.sample_rate, clip).astype(np.float32) / 32768 for clip in plan]
    for clip in clips:
        clip.flags.writeable = False
    return tuple(clips)


def room(seconds: float, seed: int = 1) -> np.ndarray:
    """A quiet room, which is faint noise: (n,) float32 at 16 kHz."""
    return (0.0005 * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)

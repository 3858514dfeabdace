"""Whisper's timestamps: where in a window speech begins and ends, as tokens of 20 ms beside those of the text."""

from dataclasses import dataclass

import numpy as np

from stages.asr.augmentation import loudness_by_frame
from stages.asr.encoder import TIMESTAMP_SECONDS
from stages.asr.mel import FRAMES_PER_SECOND
from stages.asr.model import SpeechModel

MASKED, NOISE = 1e-3, 3.0  # of power: what is below the loudest frames by so much, or near the softest, is background
LOUDEST, SOFTEST = 95, 5  # percentiles of a clip's frames
SPEECH = 0.1  # of the loudest frames' power: is speech, however loud the softest are


@dataclass(frozen=True)
class Stamped:
    """A piece of a transcript and its place in the window, in seconds."""

    start: float
    end: float
    text: str


def speech_bounds(mel: np.ndarray) -> tuple[int, int]:
    """Where sound that is no background begins and ends in (n_mels, n_frames) scaled log-mel, in frames.

    In the median within 20 and 80 ms of what the detector of long recordings finds, and it needs the features alone.
    """
    loudness = loudness_by_frame(mel)
    loudest, softest = np.percentile(loudness, [LOUDEST, SOFTEST])
    sounding = np.flatnonzero(loudness >= max(MASKED * loudest, min(NOISE * softest, SPEECH * loudest)))
    return int(sounding[0]), int(sounding[-1]) + 1


def timestamp(model: SpeechModel, frame: float) -> int:
    """The token of a place in the window, at the latest of its end."""
    begin = vars(model.whisper.generation_config)["no_timestamps_token_id"] + 1  # Whisper's order
    return int(begin + round(min(frame, model.window) / FRAMES_PER_SECOND / TIMESTAMP_SECONDS))


def read_timestamps(model: SpeechModel, tokens: list[int]) -> list[Stamped]:
    """The pieces of a transcript with timestamps; what stands outside a pair of them has no place and is left out."""
    begin, pieces = timestamp(model, 0), []
    start, text = None, list[int]()
    for token in tokens:
        if token < begin:
            text.append(token)
            continue
        seconds = round((token - begin) * TIMESTAMP_SECONDS, 2)
        if start is not None and text:
            words = model.tokenizer.decode(text, skip_special_tokens=True)
            pieces.append(Stamped(start, seconds, " ".join(words.split())))
            start = None
        else:
            start = seconds
        text = []
    return pieces

"""Long audio to text: speech is found as it comes, in segments that the model hears at once, and decoded."""

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from stages.asr.decoding import Check, context_frames, greedy_search, token_limit
from stages.asr.mel import FRAMES_PER_SECOND, SAMPLE_RATE, log_mel, pad_or_trim
from stages.asr.model import SpeechModel
from stages.asr.vad import CHUNKS_PER_SECOND, SpeechSegmenter, VadOptions, mean_square, split_chunks

# RMS of a window: -31 and -23 dB of full scale, the latter broadcasting's (EBU R 128); a model knows what it was
# trained on, and the built-in corpus lies between.
MIN_RMS, MAX_RMS = 0.028, 0.071
LOOP_RATIO = 2.4  # text that zlib makes so much shorter repeats itself: openai/whisper's threshold


@dataclass(frozen=True)
class Segment:
    """What was said from start to end, in seconds of the recording."""

    start: float
    end: float
    text: str


def transcribe(
    model: SpeechModel,
    blocks: Iterable[np.ndarray],
    options: VadOptions | None = None,
    check: Check = lambda: None,
) -> Iterator[tuple[float, Segment | None]]:
    """Transcribe audio of any length: blocks of mono float at 16 kHz, (n,), of any n, one after the other.

    Yields the seconds heard so far with each segment, in their order, and with None about each second in between, so
    that whoever closes the generator need not wait. Keeps no more than one window of audio beside the block; silence
    and noise give no segment. Each window is decoded as ``decode`` does a clip.
    options: how speech is found, VadOptions' defaults where None; no segment is longer than the model's window.
    check: called before each token, so that what it raises ends the work within a window too.
    """
    segmenter = SpeechSegmenter((options or VadOptions()).within(model.window / FRAMES_PER_SECOND))
    for number, chunk in enumerate(split_chunks(blocks), start=1):
        for segment in transcribe_windows(model, segmenter.feed(chunk), check):
            yield segmenter.seconds, segment
        if number % CHUNKS_PER_SECOND == 0:
            yield segmenter.seconds, None
    for segment in transcribe_windows(model, segmenter.flush(), check):
        yield segmenter.seconds, segment
    yield segmenter.seconds, None


def transcribe_windows(
    model: SpeechModel, windows: Iterable[tuple[float, np.ndarray]], check: Check
) -> Iterator[Segment]:
    """The segments of windows, given by their start in seconds and their samples, in which there is text."""
    for start, samples in windows:
        if text := window_text(model, samples, check):
            yield Segment(start, start + len(samples) / SAMPLE_RATE, text)


def window_text(model: SpeechModel, samples: np.ndarray, check: Check = lambda: None) -> str:
    """The text of (n,) float at 16 kHz, at most the model's window, as ``decode`` would have it of such a clip.

    A window that is quieter than MIN_RMS or louder than MAX_RMS is first brought there.
    """
    rms = max(np.sqrt(mean_square(samples)), 1e-9)
    levelled = samples * (np.clip(rms, MIN_RMS, MAX_RMS) / rms)
    mel = log_mel(levelled, model.whisper.config.num_mel_bins).astype(np.float32)
    n_frames = mel.shape[1]
    mels = torch.from_numpy(pad_or_trim(mel, context_frames(model, n_frames)))[None]
    (row,) = greedy_search(model, mels, token_limit(n_frames), check=check)
    return without_loop(" ".join(model.tokenizer.decode(row, skip_special_tokens=True).split()))


def without_loop(text: str) -> str:
    """A text in which what comes four times and more in a row comes once, where that is most of the text."""
    data = text.encode()
    if len(data) <= LOOP_RATIO * len(zlib.compress(data)):
        return text
    return re.sub(r"(.+?)\1{3,}", r"\1", text).strip()

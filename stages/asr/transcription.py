"""Long audio to text: speech is found as it comes, in segments that the model hears at once, and decoded."""

import re
import zlib
from collections.abc import Iterable, Iterator
from math import prod

import numpy as np
import torch

from stages.asr.decoding import Check, context_frames, greedy_search, token_limit
from stages.asr.device import quick_precision
from stages.asr.mel import FRAMES_PER_SECOND, SAMPLE_RATE, log_mel, pad_or_trim
from stages.asr.model import SpeechModel
from stages.asr.segments import Segment, Word
from stages.asr.text import UNSPACED
from stages.asr.timestamps import speech_bounds
from stages.asr.vad import CHUNKS_PER_SECOND, SpeechSegmenter, VadOptions, mean_square, split_chunks

# RMS of a window: -31 and -23 dB of full scale, the latter broadcasting's (EBU R 128); a model knows what it was
# trained on, and the built-in corpus lies between.
MIN_RMS, MAX_RMS = 0.028, 0.071
SPACE = "Ġ"  # a space in the tokens of a byte-level BPE, each of which has it at its start alone
LOOP_RATIO = 2.4  # text that zlib makes so much shorter repeats itself: openai/whisper's threshold


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
    check: called before each token and each layer of the encoder, so that what it raises ends the work within a window
    too.
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
    model: SpeechModel, windows: Iterable[tuple[float, np.ndarray]], check: Check = lambda: None
) -> Iterator[Segment]:
    """The segments of windows, given by their start in seconds and their samples, in which there is text."""
    for start, samples in windows:
        segment = transcribe_window(model, samples, start, check)
        if segment.text:
            yield segment


def transcribe_window(
    model: SpeechModel, samples: np.ndarray, start: float = 0.0, check: Check = lambda: None
) -> Segment:
    """What is said in (n,) float at 16 kHz, at most the model's window, which begin at ``start`` in the recording.

    The text is what ``decode`` would have of such a clip. A window that is quieter than MIN_RMS or louder than MAX_RMS
    is first brought there.
    """
    rms = max(np.sqrt(mean_square(samples)), 1e-9)
    levelled = samples * (np.clip(rms, MIN_RMS, MAX_RMS) / rms)
    mel = log_mel(levelled, model.whisper.config.num_mel_bins).astype(np.float32)
    n_frames = mel.shape[1]
    mels = torch.from_numpy(pad_or_trim(mel, context_frames(model, n_frames)))[None]
    steps = list[torch.Tensor]()
    with quick_precision(model.whisper.device):
        (row,) = greedy_search(model, mels, token_limit(n_frames), probabilities=steps, check=check)
    text = without_loop(" ".join(model.tokenizer.decode(row, skip_special_tokens=True).split()))
    end = start + len(samples) / SAMPLE_RATE
    if not text:
        return Segment(start, end, text)
    first, last = (start + frame / FRAMES_PER_SECOND for frame in speech_bounds(mel))
    rates = word_probabilities(model, row, torch.cat(steps).tolist(), text)
    return Segment(start, end, text, time_words(text, rates, first, min(last, end)))


def word_probabilities(model: SpeechModel, tokens: list[int], probabilities: list[float], text: str) -> list[float]:
    """The product of its tokens' probabilities for each word of a text that was decoded from these tokens.

    In a script without spaces a word here is a sentence, and has their geometric mean.
    Where the words are not those of the tokens, as in a text whose loop was cut out, each has the lowest.
    """
    pieces = model.tokenizer.convert_ids_to_tokens(tokens)
    starts = [at for at, piece in enumerate(pieces) if at == 0 or piece.startswith(SPACE)]
    spans = [slice(*span) for span in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    words = [model.tokenizer.decode(tokens[span], skip_special_tokens=True).strip() for span in spans]
    found = [
        (word, prod(probabilities[span]) ** (1 / len(probabilities[span]) if UNSPACED.search(word) else 1))
        for word, span in zip(words, spans, strict=True)
        if word
    ]
    if [word for word, _ in found] == text.split():
        return [rate for _, rate in found]
    return [min(rate for _, rate in found)] * len(text.split())


def time_words(text: str, probabilities: list[float], start: float, end: float) -> tuple[Word, ...]:
    """The words of a text that is said from start to end, each for as long as its letters and a space's share."""
    words = text.split()
    edges = np.cumsum([0, *(len(word) + 1 for word in words)])
    times = (start + (end - start) * edges / edges[-1]).tolist()
    return tuple(map(Word, times, times[1:], words, probabilities))


def without_loop(text: str) -> str:
    """A text in which what comes four times and more in a row comes once, where that is most of the text."""
    letters = {letter: number % 256 for number, letter in enumerate(sorted(set(text)))}
    data = bytes(letters[letter] for letter in text)  # in UTF-8 two of three bytes of each Tamil letter are the same
    if len(data) <= LOOP_RATIO * len(zlib.compress(data)):
        return text
    shorter = re.sub(r"(.+?)\1{3,}", r"\1", text).strip()
    return shorter if len(shorter) < len(text) / 2 else text

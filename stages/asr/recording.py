"""An audio or video file of any length, read in blocks without ever holding it whole."""

import ctypes
from collections.abc import Iterator
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soxr

from stages.asr.audio import FFMPEG_FORMATS, RATES, AudioError
from stages.asr.mel import SAMPLE_RATE

BLOCK_SAMPLES = SAMPLE_RATE  # of a block, at least: 1 s
FFMPEG_OPTIONS = {
    "format_whitelist": FFMPEG_FORMATS,
    "protocol_whitelist": "file",
    "max_streams": "32",  # each may claim an index of its own
}
MAX_ALLOCATION = 64 * 2**20  # bytes that ffmpeg may take at once: the index of a 4 h mp4 is half of that
NOT_READABLE = "{} is not a readable audio or video file: {}; convert it to wav, mp3 or mp4"


class Recording:
    """One open file; a context manager that closes it.

    seconds: what the header claims, None where it says nothing; never believed beyond refusing a file at once.
    """

    def __init__(self, container: av.container.InputContainer, name: str, max_seconds: float):
        self._container, self._name, self._max_seconds = container, name, max_seconds
        if not container.streams.audio:
            raise AudioError(f"{name} contains no audio: choose a file with an audio track")
        self._track = container.streams.audio[0]
        if not self._track.codec_context:
            raise AudioError(NOT_READABLE.format(name, "nothing here decodes its audio"))
        if self._track.rate not in RATES:
            raise AudioError(NOT_READABLE.format(name, f"it has {self._track.rate} samples a second"))
        self.seconds = header_seconds(container, self._track)
        if self.seconds is not None and self.seconds > max_seconds:
            raise AudioError(too_long_message(name, max_seconds, f"{format_duration(self.seconds)}, "))

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """The first track's samples, once: mono float32 at 16 kHz, (n,), about 1 s each, the last one shorter.

        Resamples as ``read_audio`` does. A file that was cut off or is damaged in places gives what can be decoded.
        Raises AudioError, naming the file, where that is nothing, or more than max_seconds.
        """
        waiting, given = [], 0
        for piece in self._resampled():
            waiting.append(piece)
            n_read = given + sum(map(len, waiting))
            if n_read > self._max_seconds * SAMPLE_RATE:
                raise AudioError(too_long_message(self._name, self._max_seconds))
            if n_read - given >= BLOCK_SAMPLES:
                yield np.concatenate(waiting)
                waiting, given = [], n_read
        if not given and not any(map(len, waiting)):
            raise AudioError(NOT_READABLE.format(self._name, "it contains no samples"))
        if any(map(len, waiting)):
            yield np.concatenate(waiting)

    def _resampled(self) -> Iterator[np.ndarray]:
        """(n,) float32 at 16 kHz, a frame at a time; a stream may change its own rate midway."""
        rate, resampler = None, None
        for samples, own_rate in self._frames():
            if own_rate != rate:
                if own_rate not in RATES:
                    raise AudioError(NOT_READABLE.format(self._name, f"it has {own_rate} samples a second"))
                if resampler:
                    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
                rate, resampler = own_rate, None
                if rate != SAMPLE_RATE:
                    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1, dtype="float32")
            yield resampler.resample_chunk(samples) if resampler else samples
        if resampler:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)

    def _frames(self) -> Iterator[tuple[np.ndarray, int]]:
        """Decoded frames, mono, with their rates in Hz: past damaged packets, up to where the file can be followed."""
        packets = self._container.demux(self._track)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError):
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except (av.FFmpegError, OSError):
                continue
            yield from ((to_mono(frame), frame.sample_rate) for frame in frames)


def open_recording(path: Path, max_seconds: float) -> Recording:
    """Open a file, whatever its suffix; it opens no other, though a playlist names some.

    Raises AudioError, with the file's own name and not its folder's, where it is not an audio or video file, has no
    audio track, or claims to last longer than max_seconds.
    """
    bound_allocations()
    try:
        # The prefix keeps a file's name from being read as a URL.
        container = av.open(f"file:{path}", options=FFMPEG_OPTIONS, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it cannot be decoded"
        raise AudioError(NOT_READABLE.format(path.name, reason)) from None
    try:
        return Recording(container, path.name, max_seconds)
    except BaseException:
        container.close()
        raise


def bound_allocations() -> None:
    """Let ffmpeg take no more at once in this process: an mp4 of 10 kB can claim an index of gigabytes."""
    limit = getattr(ctypes.CDLL(av._core.__file__), "av_max_alloc", None)  # in a library that PyAV's own is linked to
    if limit:
        limit(ctypes.c_size_t(MAX_ALLOCATION))


def to_mono(frame: av.AudioFrame) -> np.ndarray:
    """The mean of a frame's channels: (n,) float32, full scale 1."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / 2.0 ** (8 * samples.itemsize - 1)
    samples = samples.astype(np.float32, copy=False)
    return samples.mean(axis=0) if len(samples) > 1 else np.ascontiguousarray(samples[0])


def header_seconds(container: av.container.InputContainer, track: av.AudioStream) -> float | None:
    """The longer of what the file's and the track's headers say, None where neither says anything."""
    claims: list[Fraction] = []
    if container.duration:
        claims.append(Fraction(container.duration, av.time_base))
    if track.duration and track.time_base:
        claims.append(track.duration * track.time_base)
    return float(max(claims)) if claims else None


def too_long_message(name: str, max_seconds: float, claim: str = "") -> str:
    limit = format_duration(max_seconds)
    return f"{name} lasts {claim}longer than {limit}, the most that is transcribed at once: cut it into shorter files"


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    return str(timedelta(seconds=round(seconds)))

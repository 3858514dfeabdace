"""Audio files as samples."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
import soxr

from stages.runtime.errors import UserError

# What ffmpeg may take a file for: audio and video formats alone, because a playlist would make it open other files.
FFMPEG_FORMATS = "aac,aiff,amr,amrnb,amrwb,asf,caf,flac,matroska,mov,mp3,ogg,wav"


RATES = range(4_000, 768_001)  # Hz: a file of a few kB at 1 Hz would be hours
MAX_CHANNELS = 32


class AudioError(UserError):
    """An audio file that cannot be decoded."""


class TooLongError(AudioError):
    """An audio file of more than max_seconds; seconds: what its header says, or else what was decoded so far."""

    def __init__(self, path: Path, seconds: float):
        super().__init__(f"{path} lasts {seconds:.2f} s")
        self.seconds = seconds


def read_audio(path: Path, sample_rate: int, max_seconds: float = math.inf) -> np.ndarray:
    """The samples of an audio file, mono at sample_rate Hz: (n_samples,) float32 in about [-1, 1].

    Resamples through soxr at high quality, as ``librosa.load`` does, without the seconds that importing librosa takes.
    Raises AudioError, naming the file, where nothing can be decoded or a sample is NaN or infinite; TooLongError.
    """
    samples, own_rate = decode_audio(path, max_seconds)
    return soxr.resample(samples, own_rate, sample_rate) if own_rate != sample_rate else samples


def decode_audio(path: Path, max_seconds: float = math.inf) -> tuple[np.ndarray, int]:
    """The samples of an audio file, mono, (n_samples,) float32 in about [-1, 1], and its own rate in Hz.

    Decodes through libsndfile, or where that does not know the format (m4a, webm, mp4) through ffmpeg's libraries.
    What lasts longer than max_seconds, by its header or as it is decoded, is refused: a small file may hold hours.
    Raises AudioError, naming the file, where nothing can be decoded or a sample is NaN or infinite; TooLongError.
    """
    try:
        with soundfile.SoundFile(path) as file:
            check_header(path, file.samplerate, file.channels, file.frames / file.samplerate, max_seconds)
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError):  # the latter of any file that is called .raw
        return decode_with_ffmpeg(path, max_seconds)
    return join_blocks(path, [samples], sample_rate, max_seconds), sample_rate


def check_header(path: Path, sample_rate: int, channels: int, seconds: float, max_seconds: float) -> None:
    """Refuse what a file says of itself; raises AudioError, and TooLongError."""
    if sample_rate not in RATES:
        raise AudioError(f"{path} is not a readable audio file: it has {sample_rate} samples a second")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"{path} is not a readable audio file: it has {channels} channels")
    if seconds > max_seconds:
        raise TooLongError(path, seconds)


def join_blocks(path: Path, blocks: Iterable[np.ndarray], sample_rate: int, max_seconds: float) -> np.ndarray:
    """Blocks of (n_samples, n_channels) float32 as mono: (n_samples,). Raises AudioError, and TooLongError."""
    pieces, n_samples = [np.zeros(0, np.float32)], 0
    for block in blocks:
        if not np.isfinite(block).all():  # one in a clip would make all of its features NaN
            raise AudioError(f"{path} is not a readable audio file: it contains samples that are NaN or infinite")
        n_samples += len(block)
        if n_samples > max_seconds * sample_rate:
            raise TooLongError(path, n_samples / sample_rate)
        pieces.append(block.mean(axis=1) if block.shape[1] > 1 else block[:, 0])
    return np.concatenate(pieces)


def decode_with_ffmpeg(path: Path, max_seconds: float = math.inf) -> tuple[np.ndarray, int]:
    """The samples of a file's first audio track, mono, (n_samples,) float32, and their rate in Hz.

    Raises AudioError, naming the file, and TooLongError.
    """
    import av  # only here: few files need it

    try:
        # The prefix keeps a file's name from being read as a URL.
        with av.open(f"file:{path}", options={"format_whitelist": FFMPEG_FORMATS}) as container:
            if not container.streams.audio:
                raise AudioError(f"{path} contains no audio")
            track = container.streams.audio[0]
            if not track.codec_context:
                raise AudioError(f"{path} is not a readable audio file: nothing here decodes its audio")
            rate: int = track.rate
            check_header(path, rate, track.channels, 0.0, max_seconds)
            convert = av.AudioResampler(format="fltp", rate=rate)  # one array a channel, at the track's own rate
            frames = (piece for frame in container.decode(track) for piece in convert.resample(frame))
            samples = join_blocks(path, (frame.to_ndarray().T for frame in frames), rate, max_seconds)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioError(f"{path} is not a readable audio file: {getattr(error, 'strerror', None) or error}") from None
    if not len(samples):
        raise AudioError(f"{path} is not a readable audio file: it contains no samples")
    return samples, rate

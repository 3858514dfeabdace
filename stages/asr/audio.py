"""Audio files as samples."""

from pathlib import Path

import numpy as np
import soundfile
import soxr

from stages.runtime.errors import UserError

# What ffmpeg may take a file for: audio and video formats alone, because a playlist would make it open other files.
FFMPEG_FORMATS = "aac,aiff,amr,amrnb,amrwb,asf,caf,flac,matroska,mov,mp3,ogg,wav"


class AudioError(UserError):
    """An audio file that cannot be decoded."""


def read_audio(path: Path, sample_rate: int) -> np.ndarray:
    """The samples of an audio file, mono at sample_rate Hz: (n_samples,) float32 in about [-1, 1].

    Resamples through soxr at high quality, as ``librosa.load`` does, without the seconds that importing librosa takes.
    Raises AudioError, naming the file, where nothing can be decoded or a sample is NaN or infinite.
    """
    samples, own_rate = decode_audio(path)
    return soxr.resample(samples, own_rate, sample_rate) if own_rate != sample_rate else samples


def decode_audio(path: Path) -> tuple[np.ndarray, int]:
    """The samples of an audio file, mono, (n_samples,) float32 in about [-1, 1], and its own rate in Hz.

    Decodes through libsndfile, or where that does not know the format (m4a, webm, mp4) through ffmpeg's libraries.
    Raises AudioError, naming the file, where nothing can be decoded or a sample is NaN or infinite.
    """
    try:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        samples, sample_rate = decode_with_ffmpeg(path)
    if not np.isfinite(samples).all():  # one in a clip would make all of its features NaN
        raise AudioError(f"{path} is not a readable audio file: it contains samples that are NaN or infinite")
    return samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0], sample_rate


def decode_with_ffmpeg(path: Path) -> tuple[np.ndarray, int]:
    """The samples of a file's first audio track, (n_samples, n_channels) float32, and their rate in Hz.

    Raises AudioError, naming the file.
    """
    import av  # only here: few files need it

    pieces = []
    try:
        # The prefix keeps a file's name from being read as a URL.
        with av.open(f"file:{path}", options={"format_whitelist": FFMPEG_FORMATS}) as container:
            if not container.streams.audio:
                raise AudioError(f"{path} contains no audio")
            track = container.streams.audio[0]
            convert = av.AudioResampler(format="fltp")  # one array a channel, at the track's own rate
            for frame in container.decode(track):
                pieces += [piece.to_ndarray() for piece in convert.resample(frame)]
            sample_rate = track.rate
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioError(f"{path} is not a readable audio file: {getattr(error, 'strerror', None) or error}") from None
    if not pieces:
        raise AudioError(f"{path} is not a readable audio file: it contains no samples")
    return np.concatenate(pieces, axis=1).T, sample_rate

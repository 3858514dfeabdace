"""Sound files as samples."""

from pathlib import Path

import numpy as np
import soundfile
import soxr

from stages.asr.errors import UserError


class AudioError(UserError):
    """A sound file that cannot be decoded."""


def read_audio(path: Path, sample_rate: int) -> np.ndarray:
    """The samples of a sound file, mono at sample_rate Hz: (n_samples,) float32 in about [-1, 1].

    Decodes through libsndfile and resamples through soxr at high quality, as ``librosa.load`` does, without the
    seconds that importing librosa takes. Raises AudioError, naming the file, where nothing can be decoded.
    """
    try:
        samples, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path} is no readable sound file: {error}") from None
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    return soxr.resample(mono, own_rate, sample_rate) if own_rate != sample_rate else mono

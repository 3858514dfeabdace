"""Whisper's log-mel spectrogram, cropped to the clip's own frames.

The transform is that of Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), as
published in openai/whisper. It is computed in float64 and rounded once by whoever stores it, so that processors with
other instruction sets arrive at the same bytes.
"""

import math
from functools import cache

import numpy as np

SAMPLE_RATE = 16_000  # Hz
N_FFT = 400  # samples of a frame's window, 25 ms
HOP_LENGTH = 160  # samples from one frame to the next, 10 ms
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
MAX_SECONDS = 30  # what Whisper takes at once
MAX_SAMPLES = MAX_SECONDS * SAMPLE_RATE
MAX_FRAMES = MAX_SECONDS * FRAMES_PER_SECOND
LOG_MEL_RANGE = 2.0  # scaled log-mel: nothing is kept more than 80 dB below a clip's loudest bin
LOG_MEL_SILENCE = -1.5  # scaled log-mel of digital silence
BLOCK_FRAMES = 64  # transformed at once: the scratch arrays stay small enough for the allocator to reuse


def count_frames(n_samples: int) -> int:
    """Frames that hold anything of a clip: the window of the last one still touches its last sample."""
    return min(-(-(n_samples + N_FFT // 2) // HOP_LENGTH), MAX_FRAMES)


def log_mel(samples: np.ndarray, n_mels: int) -> np.ndarray:
    """Scaled log-mel of a clip: (n_samples,) float at 16 kHz -> (n_mels, n_frames) float64, 10 ms a frame.

    Equal to the first ``count_frames(n_samples)`` frames of the 30 s window that Whisper's feature extractor makes; the
    frames after them hold the constant ``mel_floor``. Raises ValueError for no samples or for more than 30 s.
    """
    if not 0 < len(samples) <= MAX_SAMPLES:
        raise ValueError(f"{len(samples) / SAMPLE_RATE:.1f} s of audio; Whisper takes at most {MAX_SECONDS} s at once")
    frames = count_frames(len(samples))
    half = N_FFT // 2
    padded = np.zeros(min(len(samples) + N_FFT, MAX_SAMPLES))
    padded[: len(samples)] = samples
    padded = np.pad(padded, half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH][:frames]
    hann = np.hanning(N_FFT + 1)[:-1]
    filters = mel_filters(n_mels).T
    power = np.empty((frames, n_mels))
    for start in range(0, frames, BLOCK_FRAMES):
        spectrum = np.fft.rfft(windows[start : start + BLOCK_FRAMES] * hann)
        power[start : start + BLOCK_FRAMES] = (spectrum.real**2 + spectrum.imag**2) @ filters
    log = np.log10(np.maximum(power, 1e-10))
    scaled = (log + 4) / 4
    clipped: np.ndarray = np.maximum(scaled, scaled.max() - LOG_MEL_RANGE)
    return clipped.T


def mel_floor(mel: np.ndarray) -> float:
    """Scaled log-mel of the frames beyond a clip's end, which are therefore never stored."""
    return max(float(mel.max()) - LOG_MEL_RANGE, LOG_MEL_SILENCE)


def pad_or_trim(mel: np.ndarray, n_frames: int) -> np.ndarray:
    """Scaled log-mel, (n_mels, any number of frames), as (n_mels, n_frames): padded as Whisper pads, or cropped."""
    mel = mel[:, :n_frames]
    silence = np.full((len(mel), n_frames - mel.shape[1]), mel_floor(mel), mel.dtype)
    return np.concatenate([mel, silence], axis=1)


@cache
def mel_filters(n_mels: int) -> np.ndarray:
    """Triangular filters on Slaney's mel scale, of equal area: (n_mels, N_FFT // 2 + 1) float64.

    Source: Slaney, "Auditory Toolbox" (1998), with 0 to 8 kHz, as librosa and Whisper use it.
    """
    hertz = mel_to_hertz(np.linspace(0, hertz_to_mel(SAMPLE_RATE / 2), n_mels + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    low, centre, high = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    filters: np.ndarray = np.maximum(triangles, 0) * 2 / (high - low)
    return filters


LINEAR_HERTZ, LINEAR_MELS = 1000.0, 15.0  # Slaney's scale is linear up to here
LOG_STEP = math.log(6.4) / 27  # and logarithmic above


def hertz_to_mel(hertz: float) -> float:
    """Slaney's mel of a frequency above 1 kHz."""
    return LINEAR_MELS + math.log(hertz / LINEAR_HERTZ) / LOG_STEP


def mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    """The frequencies of mels on Slaney's scale."""
    above = LINEAR_HERTZ * np.exp(LOG_STEP * (np.maximum(mel, LINEAR_MELS) - LINEAR_MELS))
    return np.where(mel < LINEAR_MELS, mel * LINEAR_HERTZ / LINEAR_MELS, above)

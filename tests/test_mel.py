from functools import cache

import librosa
import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from stages.asr import shards
from stages.asr.mel import (
    HOP_LENGTH,
    LOG_MEL_RANGE,
    MAX_FRAMES,
    MAX_SAMPLES,
    N_FFT,
    SAMPLE_RATE,
    count_frames,
    log_mel,
    mel_filters,
    mel_floor,
    pad_or_trim,
)
from tests.support.material import pack, speech


def click() -> np.ndarray:
    samples = speech(1.5) * 0.01
    samples[9000:9010] = 1.0
    return samples


SOUNDS = {
    "speech": speech(3.217),
    "quiet speech": speech(2.5, seed=2) * 1e-3,
    "a loud click": click(),
    "silence": np.zeros(20_000, np.float32),
    "one sample": np.array([0.3], np.float32),
    "30 s": speech(30, seed=3),
    "29.99 s": speech(29.99, seed=4),
    "29.995 s, loud at its end": np.r_[speech(29.9, seed=5) * 0.01, speech(0.095, seed=6)],
}
EACH_SOUND = pytest.mark.parametrize("name", SOUNDS)
EACH_SIZE = pytest.mark.parametrize("n_mels", [80, 128])


# An FFT's rounding errors are about sqrt(log2(N_FFT)) = 3 units of the last place (2^-24 in float32, 2^-53 in float64)
# of a frame's whole amplitude (Schatzman, "Accuracy of the discrete Fourier transform and the fast Fourier transform",
# 1996). Bins are kept down to 80 dB below the loudest, which is 1e-4 of its amplitude, so that theirs may be 3e4 units
# off. Squared and through (log10 + 4) / 4 that is 2 / ln(10) / 4 = 0.22 times as much: 4e-4 and 7e-13. Besides, mel
# filters weigh bins differently, and processors add up in another order: a margin of about three.
FLOAT32, FLOAT64 = 1e-3, 2e-12


@cache
def whispers(name: str, n_mels: int) -> np.ndarray:
    """(n_mels, MAX_FRAMES) float64 by openai/whisper's recipe, on torch's transform and librosa's filters."""
    samples = np.zeros(MAX_SAMPLES)
    samples[: len(SOUNDS[name])] = SOUNDS[name]
    window = torch.hann_window(N_FFT, dtype=torch.float64)
    spectrum = torch.stft(torch.from_numpy(samples), N_FFT, HOP_LENGTH, window=window, return_complex=True)[:, :-1]
    filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=n_mels, dtype=np.float64)
    log = np.log10(np.maximum(filters @ (spectrum.abs() ** 2).numpy(), 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4


@cache
def transformers_features(name: str, n_mels: int) -> np.ndarray:
    """(n_mels, MAX_FRAMES) float32 as transformers computes it."""
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    return extractor(SOUNDS[name], sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0]


def stored(name: str, n_mels: int, dtype: str) -> np.ndarray:
    """(n_mels, MAX_FRAMES) rebuilt from a shard's bytes."""
    entry, data = pack(name, SOUNDS[name], "", dtype, n_mels)
    return pad_or_trim(shards.unpack_mel(data, entry, dtype, n_mels), MAX_FRAMES)


def worst(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max()


@EACH_SOUND
@EACH_SIZE
def test_rebuilt_features_are_whispers(name, n_mels):
    mel = log_mel(SOUNDS[name], n_mels)
    assert mel.shape == (n_mels, count_frames(len(SOUNDS[name])))
    assert mel.dtype == np.float64
    assert worst(pad_or_trim(mel, MAX_FRAMES), whispers(name, n_mels)) < FLOAT64
    assert worst(pad_or_trim(mel, MAX_FRAMES), transformers_features(name, n_mels)) < FLOAT32


@EACH_SOUND
@EACH_SIZE
def test_float16_shards_are_within_a_half_of_its_last_place(name, n_mels):
    assert whispers(name, n_mels).max() < 2  # whence float16 keeps ten bits behind the point
    assert worst(stored(name, n_mels, "float16"), whispers(name, n_mels)) <= 2**-11 + 1e-6  # float32 holds the result


@EACH_SOUND
@EACH_SIZE
def test_8_bit_shards_are_within_half_a_step(name, n_mels):
    mel = whispers(name, n_mels)
    step = min(LOG_MEL_RANGE, mel.max() - mel_floor(mel)) / 255
    assert step <= 2 / 255
    # The peak has six digits, and float32 holds the result.
    assert worst(stored(name, n_mels, "uint8"), mel) <= step / 2 + 1e-6


@pytest.mark.parametrize("name", ["speech", "quiet speech", "silence"])
def test_no_sound_reaches_beyond_the_stored_frames(name):
    mel = log_mel(SOUNDS[name], 80)
    beyond = whispers(name, 80)[:, mel.shape[1] :]
    assert beyond.size
    assert worst(beyond, np.full_like(beyond, mel_floor(mel))) < FLOAT64


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_last_stored_frame_is_the_last_that_hears_the_clip(extra):
    samples = np.zeros(50 * HOP_LENGTH - N_FFT // 2 + extra, np.float32)
    samples[-1] = 1
    frames = count_frames(len(samples))
    assert frames == 50 + (extra > 0)
    features = WhisperFeatureExtractor()(samples, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0]
    assert np.ptp(features[:, frames:]) == 0
    assert worst(pad_or_trim(log_mel(samples, 80), MAX_FRAMES), features) < FLOAT32


def test_floor_is_80_db_below_the_peak_but_never_below_silence():
    assert mel_floor(np.array([[1.2, 0.3]])) == pytest.approx(-0.8)
    assert mel_floor(np.array([[0.2, -1.0]])) == -1.5
    assert mel_floor(log_mel(np.zeros(1000), 80)) == -1.5


@EACH_SIZE
def test_filters_are_librosas(n_mels):
    theirs = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=n_mels, dtype=np.float64)
    np.testing.assert_allclose(mel_filters(n_mels), theirs, rtol=0, atol=1e-12)


def test_the_same_sound_as_float32_and_float64_gives_the_same_features():
    samples = SOUNDS["speech"]
    assert np.array_equal(log_mel(samples, 80), log_mel(samples.astype(np.float64), 80))


@pytest.mark.parametrize(("samples", "seconds"), [(0, "0.0 s"), (MAX_SAMPLES + 1, "30.0 s")])
def test_no_sound_and_more_than_30_s_are_refused(samples, seconds):
    with pytest.raises(ValueError, match=f"{seconds} of audio; Whisper takes at most 30 s"):
        log_mel(np.zeros(samples), 80)

from functools import cache

import librosa
import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from stages.asr import shards
from stages.asr.mel import (
    HOP,
    MAX_FRAMES,
    MAX_SAMPLES,
    SAMPLE_RATE,
    SPAN,
    WINDOW,
    floor,
    log_mel,
    mel_filters,
    n_frames,
    pad_mel,
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


@cache
def whispers(name: str, n_mels: int) -> np.ndarray:
    """(n_mels, MAX_FRAMES) as transformers computes it."""
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    return extractor(SOUNDS[name], sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0]


def stored(name: str, n_mels: int, dtype: str) -> np.ndarray:
    """(n_mels, MAX_FRAMES) rebuilt from a shard's bytes."""
    entry, data = pack(name, SOUNDS[name], "", dtype, n_mels)
    return pad_mel(shards.decode(data, entry, dtype, n_mels), MAX_FRAMES)


def worst(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max()


@EACH_SOUND
@EACH_SIZE
def test_rebuilt_features_are_whispers(name, n_mels):
    mel = log_mel(SOUNDS[name], n_mels)
    assert mel.shape == (n_mels, n_frames(len(SOUNDS[name])))
    assert mel.dtype == np.float64
    assert worst(pad_mel(mel, MAX_FRAMES), whispers(name, n_mels)) < 1e-4


@EACH_SOUND
@EACH_SIZE
def test_float16_shards_are_within_a_thousandth(name, n_mels):
    assert worst(stored(name, n_mels, "float16"), whispers(name, n_mels)) < 1e-3


@EACH_SOUND
@EACH_SIZE
def test_8_bit_shards_are_within_half_a_step(name, n_mels):
    mel = pad_mel(log_mel(SOUNDS[name], n_mels), MAX_FRAMES)
    step = min(SPAN, mel.max() - floor(mel)) / 255
    assert step <= 2 / 255
    ours = stored(name, n_mels, "uint8")
    assert worst(ours, mel) <= step / 2 + 1e-6
    assert worst(ours, whispers(name, n_mels)) <= step / 2 + 1e-4


@pytest.mark.parametrize("name", ["speech", "quiet speech", "silence"])
def test_no_sound_reaches_beyond_the_stored_frames(name):
    mel = log_mel(SOUNDS[name], 80)
    beyond = whispers(name, 80)[:, mel.shape[1] :]
    assert beyond.size
    assert worst(beyond, np.full_like(beyond, floor(mel))) < 1e-5


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_last_stored_frame_is_the_last_that_hears_the_clip(extra):
    samples = np.zeros(50 * HOP - WINDOW // 2 + extra, np.float32)
    samples[-1] = 1
    frames = n_frames(len(samples))
    assert frames == 50 + (extra > 0)
    features = WhisperFeatureExtractor()(samples, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0]
    assert np.ptp(features[:, frames:]) < 1e-5
    assert worst(pad_mel(log_mel(samples, 80), MAX_FRAMES), features) < 1e-4


def test_floor_is_80_db_below_the_peak_but_never_below_silence():
    assert floor(np.array([[1.2, 0.3]])) == pytest.approx(-0.8)
    assert floor(np.array([[0.2, -1.0]])) == -1.5
    assert floor(log_mel(np.zeros(1000), 80)) == -1.5


@EACH_SIZE
def test_filters_are_librosas(n_mels):
    theirs = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=WINDOW, n_mels=n_mels, dtype=np.float64)
    np.testing.assert_allclose(mel_filters(n_mels), theirs, rtol=0, atol=1e-12)


def test_the_same_sound_as_float32_and_float64_gives_the_same_features():
    samples = SOUNDS["speech"]
    assert np.array_equal(log_mel(samples, 80), log_mel(samples.astype(np.float64), 80))


@pytest.mark.parametrize(("samples", "seconds"), [(0, "0.0 s"), (MAX_SAMPLES + 1, "30.0 s")])
def test_no_sound_and_more_than_30_s_are_refused(samples, seconds):
    with pytest.raises(ValueError, match=f"{seconds} of audio; Whisper hears at most 30 s"):
        log_mel(np.zeros(samples), 80)

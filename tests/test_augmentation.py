"""Each change of a stored mel against the same change of the waveform."""

import numpy as np
import pytest
import soxr

from stages.asr.augmentation import (
    DECIBELS,
    AugmentOptions,
    Change,
    add_noise,
    add_reverberation,
    change_gain,
    change_speed,
    coloured_noise,
    power,
    scaled_log,
    shift,
)
from stages.asr.mel import LOG_MEL_RANGE, LOG_MEL_SILENCE, SAMPLE_RATE, log_mel
from tests.support.material import speech

CLIP = speech(1.5, seed=3)
MEL = log_mel(CLIP, 80).astype(np.float32)
ALL = AugmentOptions(0.5, 0.05, 20, 0.7, 0.5, 0, 30, 0.2, 0.1, 0.5)


def decibels(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The difference of two mels, bin by bin, over the frames that both have."""
    n_frames = min(first.shape[1], second.shape[1])
    return DECIBELS * (first[:, :n_frames] - second[:, :n_frames])


def noisy(noise: np.ndarray, snr: float) -> np.ndarray:
    """The clip with noise at a ratio of so many decibels."""
    return CLIP + noise * np.sqrt(np.mean(CLIP**2) / np.mean(noise**2) / 10 ** (snr / 10))


@pytest.mark.parametrize("change", [-40, -20, 9.5])
def test_gain_is_that_of_the_waveform(change):
    wanted = log_mel(CLIP * 10 ** (change / 20), 80)
    assert np.abs(decibels(change_gain(MEL, change), wanted)).max() < 0.001  # float32 of values up to 1.5


def test_what_is_too_soft_is_digital_silence():
    assert (change_gain(MEL, -200) == LOG_MEL_SILENCE).all()


def test_a_lead_is_silence_before_the_clip():
    wanted = log_mel(np.concatenate([np.zeros(40 * 160), CLIP]), 80)
    found = shift(MEL, 40)
    assert found.shape == wanted.shape
    apart = np.abs(decibels(found, wanted))
    assert np.delete(apart, [38, 39, 40, 41], axis=1).max() < 0.001  # a frame's window reaches over the clip's edge


def test_a_cut_takes_frames_off_the_start():
    assert np.array_equal(shift(MEL, -7), MEL[:, 7:])


@pytest.mark.parametrize("snr", [0, 10, 20])
def test_noise_adds_as_it_does_in_the_waveform(snr):
    noise = np.random.default_rng(5).standard_normal(len(CLIP))
    wanted = log_mel(noisy(noise, snr), 80)
    apart = decibels(add_noise(MEL, power(log_mel(noise, 80)), snr), wanted)
    # Two sounds of like strength add with their phases, which a mel does not know: by 6 dB, or to nothing. In the mean
    # over phases the logarithm of their sum is the logarithm of the stronger.
    assert abs(apart.mean()) < 1 and np.abs(apart).mean() < 2.5


def test_made_noise_is_as_loud_in_each_bin_and_as_restless_as_real_noise():
    class White:
        """A generator whose exponent is drawn as 0."""

        def __init__(self):
            self.standard_gamma = np.random.default_rng(6).standard_gamma

        def uniform(self, low, high):
            return 0

    real = log_mel(np.random.default_rng(5).standard_normal(4 * SAMPLE_RATE), 80)[:, 2:-4]
    made = scaled_log(coloured_noise(real.shape, White()))
    apart = DECIBELS * (made.mean(1) - real.mean(1))
    assert np.abs(apart - apart.mean()).max() < 1.5
    assert 0.7 < made.std(1).mean() / real.std(1).mean() < 1.3


@pytest.mark.parametrize("speed", [0.85, 1 / 1.1, 1.1])
def test_speed_is_that_of_a_tape(speed):
    wanted = log_mel(soxr.resample(CLIP, SAMPLE_RATE, SAMPLE_RATE / speed), 80)
    found = change_speed(MEL, speed)
    assert abs(found.shape[1] - wanted.shape[1]) <= 1
    as_it_was = np.abs(decibels(MEL, wanted)).mean()
    assert np.abs(decibels(found, wanted)).mean() < min(4, as_it_was / 2)


def test_tempo_keeps_the_pitch():
    found = change_speed(MEL, 1.0, 1.25)
    assert found.shape[1] == round(MEL.shape[1] / 1.25)
    assert np.array_equal(found[:, ::4], MEL[:, ::5][:, : found[:, ::4].shape[1]])


def test_a_room_adds_a_tail_that_falls_by_its_time():
    click = np.full((80, 100), -0.5, np.float32)
    click[:, 10] = 1.5
    found = add_reverberation(click, 0.5, 0.0)
    tail = DECIBELS * found[40, 11:40]
    assert np.diff(tail) == pytest.approx(-60 / 50, abs=0.01)  # dB a frame of 10 ms
    assert found[:, :10].max() < -0.4


def test_a_change_is_what_its_key_and_options_say():
    changes = [Change.draw(ALL, f"1 0 {number}") for number in range(300)]
    assert changes[:5] == [Change.draw(ALL, f"1 0 {number}") for number in range(5)]
    assert len({*changes}) == 300
    for name, low, high in (("gain", -20, 20), ("snr", 0, 30), ("speed", 0.8, 1.2), ("tempo", 0.9, 1.1)):
        drawn = [getattr(change, name) for change in changes]
        assert low <= min(drawn) < max(drawn) <= high
        assert max(drawn) - min(drawn) > 0.9 * (high - low)
    assert {change.lead for change in changes} == {*range(51)}
    assert {change.cut_start for change in changes} == {change.cut_end for change in changes} == {*range(6)}


def test_a_changed_clip_is_a_mel_of_the_length_it_says():
    for number in range(100):
        change = Change.draw(ALL, f"{number}")
        found = change.apply(MEL, MEL if change.babble else None)
        assert found.dtype == np.float32
        assert found.shape == (80, change.length(MEL.shape[1]))
        assert change.length(MEL.shape[1]) <= ALL.longest(MEL.shape[1])
        assert found.min() >= max(found.max() - LOG_MEL_RANGE - 1e-6, LOG_MEL_SILENCE)


def test_nothing_is_changed_where_all_is_off():
    assert np.array_equal(Change.draw(AugmentOptions(), "1 0 0").apply(MEL), MEL)


@pytest.mark.parametrize("window", [170, 200, 400])
def test_a_window_cuts_no_speech_off(window):
    for number in range(100):
        change = Change.draw(ALL, f"{number}").within(window, 150)
        assert change.length(150) <= window


def test_a_clip_of_a_few_frames_stays_one():
    for number in range(100):
        change = Change.draw(ALL, f"{number}")
        for n_frames in (1, 2, 5):
            assert change.apply(MEL[:, :n_frames]).shape[1] == change.length(n_frames) >= 1

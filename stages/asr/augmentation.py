"""Changes to a clip as other microphones, rooms and speakers would make them, on its scaled log-mel.

Scaled log-mel is (log10(power) + 4) / 4 and moves by dB / 40 under gain; power is 10 ** (4 * mel - 4), in which sounds
add. So what is stored can be changed as if the waveform were, without decoding it again.
"""

import random
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from stages.asr.mel import (
    FRAMES_PER_SECOND,
    LOG_MEL_RANGE,
    LOG_MEL_SILENCE,
    N_FFT,
    SAMPLE_RATE,
    hertz_to_mel,
    mel_filters,
    mel_floor,
    mel_to_hertz,
)

DECIBELS = 40  # of one unit of scaled log-mel
HANN_BANDWIDTH = 1.5  # bins: equivalent noise bandwidth of the window (Harris 1978)


@dataclass(frozen=True)
class AugmentOptions:
    """How far training clips are changed; 0 turns a part off.

    lead_seconds: silence put before a clip, at most. cut_seconds: taken off its start and its end, at most. gain: dB,
    up or down, at most. noise: share of clips that get noise, of which the share ``babble`` is other clips and the rest
    white to brown noise; snr_low, snr_high: dB. speed: how far it is changed, pitch with it, at most; tempo: the same
    with the pitch kept. reverberation: share of clips that get the tail of a room.
    """

    lead_seconds: float = 0.0
    cut_seconds: float = 0.0
    gain: float = 0.0
    noise: float = 0.0
    babble: float = 0.0
    snr_low: float = 10.0
    snr_high: float = 30.0
    speed: float = 0.0
    tempo: float = 0.0
    reverberation: float = 0.0

    def longest(self, n_frames: int) -> int:
        """The most frames that a clip of n_frames may come to have."""
        fast = (1 - self.speed) * (1 - self.tempo)
        return int(self.lead_seconds * FRAMES_PER_SECOND) + resampled_length(n_frames, fast)


@dataclass(frozen=True)
class Change:
    """What is drawn for one clip in one epoch: frames to lead with and to cut, factors, and a seed for the noise."""

    lead: int
    cut_start: int
    cut_end: int
    gain: float
    noisy: bool
    babble: bool
    snr: float
    speed: float
    tempo: float
    reverberant: bool
    seed: int

    @staticmethod
    def draw(options: AugmentOptions, key: str) -> "Change":
        """The change that a key names: the same key, the same change, on any machine."""
        draw = random.Random(key)
        frames = FRAMES_PER_SECOND
        return Change(
            lead=int(draw.random() * (options.lead_seconds * frames + 1)),
            cut_start=int(draw.random() * (options.cut_seconds * frames + 1)),
            cut_end=int(draw.random() * (options.cut_seconds * frames + 1)),
            gain=draw.uniform(-options.gain, options.gain),
            noisy=draw.random() < options.noise,
            babble=draw.random() < options.babble,
            snr=draw.uniform(options.snr_low, options.snr_high),
            speed=draw.uniform(1 - options.speed, 1 + options.speed),
            tempo=draw.uniform(1 - options.tempo, 1 + options.tempo),
            reverberant=draw.random() < options.reverberation,
            seed=draw.getrandbits(32),
        )

    def within(self, window: int, n_frames: int) -> "Change":
        """This change of a clip of n_frames, with a shorter lead or its own speed where the window would cut it off."""
        change = self if self.length(n_frames) - self.lead <= window else replace(self, speed=1.0, tempo=1.0)
        return replace(change, lead=max(min(self.lead, window - change.length(n_frames) + self.lead), 0))

    def length(self, n_frames: int) -> int:
        """Frames of a clip of n_frames once it is changed."""
        n_frames = resampled_length(n_frames, self.speed * self.tempo)
        start, end = self.cuts(n_frames)
        return self.lead + n_frames - start - end

    def cuts(self, n_frames: int) -> tuple[int, int]:
        """Frames to cut off the start and the end of a clip of n_frames: of a very short one less."""
        return min(self.cut_start, n_frames // 8), min(self.cut_end, n_frames // 8)

    def moved(self, frame: float, n_frames: int) -> float:
        """Where a frame of a clip of n_frames lies once the clip is changed, at its edges where it is cut off."""
        start, _ = self.cuts(resampled_length(n_frames, self.speed * self.tempo))
        place = self.lead + frame / (self.speed * self.tempo) - start
        return min(max(place, self.lead), self.length(n_frames))

    def apply(self, mel: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
        """(n_mels, n_frames) -> (n_mels, ``length(n_frames)``), float32 scaled log-mel. other: a clip, for babble."""
        draw = np.random.default_rng(self.seed)
        mel = change_speed(mel, self.speed, self.tempo)
        start, end = self.cuts(mel.shape[1])
        mel = mel[:, start : mel.shape[1] - end]
        if self.reverberant:
            mel = add_reverberation(mel, draw.uniform(0.2, 0.8), draw.uniform(0, 12))
        mel = shift(mel, self.lead)
        if self.noisy:
            babble = None if other is None else power(repeated(other, mel.shape[1]))
            mel = add_noise(mel, coloured_noise(mel.shape, draw) if babble is None else babble, self.snr)
        return change_gain(mel, self.gain)


def shift(mel: np.ndarray, frames: int) -> np.ndarray:
    """Put silent frames before a clip, or cut frames off its start where ``frames`` is negative."""
    if frames <= 0:
        return mel[:, -frames:]
    silence = np.full((len(mel), frames), mel_floor(mel), mel.dtype)
    return np.concatenate([silence, mel], axis=1)


def change_gain(mel: np.ndarray, decibels: float) -> np.ndarray:
    """Louder or softer by so many decibels, down to digital silence."""
    return np.maximum(mel + np.float32(decibels / DECIBELS), np.float32(LOG_MEL_SILENCE))


def add_noise(mel: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Add noise, power of the clip's shape, at a signal-to-noise ratio of so many decibels over the clip."""
    signal = power(mel)
    share = loudness(signal) / loudness(noise) * 10 ** (-snr / 10)
    return scaled_log(signal + np.float32(share) * noise)


def change_speed(mel: np.ndarray, speed: float, tempo: float = 1.0) -> np.ndarray:
    """Faster by the factor ``speed`` as a tape would be, its pitch with it, and by ``tempo`` with its pitch kept.

    Frames are interpolated, and bins take the values of those that lie lower by the factor on Slaney's scale; nothing
    sounds above what the recording holds.
    """
    n_mels, n_frames = mel.shape
    if speed * tempo != 1:
        places = np.arange(resampled_length(n_frames, speed * tempo)) * (speed * tempo)
        mel = interpolated(mel.T, places).T
    if speed != 1:
        hertz = bin_hertz(n_mels) / speed
        bins = np.interp(hertz, bin_hertz(n_mels), np.arange(n_mels))
        floor = mel_floor(mel)
        mel = interpolated(mel, bins)
        mel[hertz > SAMPLE_RATE / 2] = floor
    return mel


def add_reverberation(mel: np.ndarray, seconds: float, ratio: float) -> np.ndarray:
    """Add the tail of a room whose sound falls by 60 dB in so many seconds, softer than the clip by ``ratio`` dB."""
    n_frames = mel.shape[1]
    decay = 10 ** (-6 / (seconds * FRAMES_PER_SECOND))  # of power, a frame
    after = np.subtract.outer(np.arange(n_frames), np.arange(n_frames))
    tail = np.where(after > 0, decay ** np.maximum(after, 1), 0).astype(np.float32)
    tail *= np.float32(10 ** (-ratio / 10) * (1 - decay) / decay)
    signal = power(mel)
    return scaled_log(signal + signal @ tail.T)


def coloured_noise(shape: tuple[int, int], draw: np.random.Generator) -> np.ndarray:
    """White to brown noise, its power falling with frequency to a drawn exponent: (n_mels, n_frames) float32 power."""
    spectrum = (np.arange(N_FFT // 2 + 1) + 1.0) ** -draw.uniform(0, 2)
    filters = mel_filters(shape[0])
    bins = filters.sum(1) ** 2 / (filters**2).sum(1)  # of the transform that a mel bin averages
    freedom = np.maximum(bins / HANN_BANDWIDTH, 1)  # as many of them vary on their own
    levels = (filters @ spectrum / freedom).astype(np.float32)
    noise: np.ndarray = levels[:, None] * draw.standard_gamma(freedom[:, None].astype(np.float32), shape, np.float32)
    return noise


def repeated(mel: np.ndarray, n_frames: int) -> np.ndarray:
    """A clip over and over, cut to n_frames."""
    return np.tile(mel, -(-n_frames // mel.shape[1]))[:, :n_frames]


def resampled_length(n_frames: int, factor: float) -> int:
    """Frames of a clip that is faster by a factor."""
    return max(round(n_frames / factor), 1)


def interpolated(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows at fractional places, linear between two neighbours; beyond the last it is the last."""
    below = np.minimum(places.astype(int), len(rows) - 1)
    above = np.minimum(below + 1, len(rows) - 1)
    part = (places - below).clip(0, 1).astype(np.float32)[:, None]
    between: np.ndarray = rows[below] * (1 - part) + rows[above] * part
    return between


def power(mel: np.ndarray) -> np.ndarray:
    """Scaled log-mel as power in each bin."""
    linear: np.ndarray = 10 ** (4 * mel - 4)
    return linear


def scaled_log(power: np.ndarray) -> np.ndarray:
    """Power in each bin as scaled log-mel, floored as Whisper floors it: float32."""
    mel = (np.log10(np.maximum(power, 1e-10)) + 4) / 4
    floored: np.ndarray = np.maximum(mel, mel.max() - LOG_MEL_RANGE).astype(np.float32)
    return floored


def loudness(power: np.ndarray) -> float:
    """Mean power of a clip over its frames, the bins weighted by their width, as the filters are of one area."""
    return float(bandwidths(len(power)) @ power.mean(1))


def loudness_by_frame(mel: np.ndarray) -> np.ndarray:
    """Power of each frame of a mel, weighted as above: (n_frames,) float."""
    loud: np.ndarray = bandwidths(len(mel)) @ power(mel)
    return loud


@cache
def bin_hertz(n_mels: int) -> np.ndarray:
    """Centres of the mel bins: (n_mels,) Hz."""
    return edges(n_mels)[1:-1]


@cache
def bandwidths(n_mels: int) -> np.ndarray:
    """Widths of the mel bins: (n_mels,) Hz."""
    widths: np.ndarray = (edges(n_mels)[2:] - edges(n_mels)[:-2]) / 2
    return widths


def edges(n_mels: int) -> np.ndarray:
    """Where the mel bins begin, the next ones' centres, and where the last one ends: (n_mels + 2,) Hz."""
    return mel_to_hertz(np.linspace(0, hertz_to_mel(SAMPLE_RATE / 2), n_mels + 2))

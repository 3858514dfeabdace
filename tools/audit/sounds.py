"""What a clip's audio tells without being listened to: its levels, bounds, band and landmarks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from stages.asr.audio import AudioError, decode_audio
from stages.asr.mel import FRAMES_PER_SECOND, HOP_LENGTH, SAMPLE_RATE, log_mel

FLOOR_DB = -100.0  # of digital silence
LOUDEST, SOFTEST = 95, 5  # percentiles of a clip's frames: a click is no speech, and a gap of digital silence no floor
SPEECH_DB, NOISE_DB = (
    30,
    10,
)  # speech is softer than the loudest frames by less, louder than the softest by more
LOUD_DB, AMPLITUDES = 10, 40  # frames whose amplitudes are counted, and the bins of their histogram
EDGE_FRAMES = 2  # 20 ms at either end
BAND_DB = 50  # below a clip's loudest band, what counts as nothing
SLOPE_BANDS = 3  # of a filter: within so many bands it reaches what it leaves
N_FFT, BINS_A_BAND = 512, 4  # at 16 kHz, so that a band is 125 Hz wide
N_MELS = 40
PEAK_BANDS, PEAK_FRAMES = 2, 4  # either side, that a peak rises above
PEAK_RANGE = 1.25  # of scaled log-mel, 50 dB: a softer peak does not survive another encoding
NEXT_PEAKS, LONGEST_FRAMES = 5, 64  # of a landmark: among how many that follow, and how long it may last
STEP_FRAMES = 2  # in which its times are told: another encoding shifts a peak by a frame


@dataclass(frozen=True)
class Sound:
    """What was measured of a clip. Levels are in dB of full scale, of frames of 10 ms.

    crowded: by how much more of the samples lie near one amplitude than near a smaller one, as a share.
    loud, soft: the loudest and softest frames. start, end: the first and last 20 ms.
    speech_start, speech_end: seconds between which something is loud.
    band: Hz up to which it sounds. beyond: the loudest there is above its slope, in dB of the loudest band.
    landmarks: (n, 2) int32, a hash of peaks that follow one another and its frame.
    """

    seconds: float
    crowded: float
    loud: float
    soft: float
    speech_start: float
    speech_end: float
    start: float
    end: float
    band: float
    beyond: float
    landmarks: np.ndarray

    @property
    def speech_seconds(self) -> float:
        return self.speech_end - self.speech_start


def measure_file(path: Path) -> Sound | str:
    """What is measured of a file, or why it cannot be."""
    try:
        samples, sample_rate = decode_audio(path)
    except (AudioError, OSError) as error:
        return str(error)
    return measure(samples, sample_rate) if len(samples) else f"{path} contains no samples"


def measure(samples: np.ndarray, sample_rate: int) -> Sound:
    """Measure a clip: (n_samples,) float32 in about [-1, 1], at least one."""
    heard = soxr.resample(samples, sample_rate, SAMPLE_RATE) if sample_rate != SAMPLE_RATE else samples
    levels = frame_levels(heard, SAMPLE_RATE)
    loud, soft = np.percentile(levels, [LOUDEST, SOFTEST])
    (sounding,) = np.nonzero(levels > max(loud - SPEECH_DB, min(soft, loud - 2 * NOISE_DB) + NOISE_DB))
    first, last = (int(sounding[0]), int(sounding[-1]) + 1) if len(sounding) else (0, len(levels))
    band, beyond = bandwidth(heard)
    return Sound(
        seconds=len(samples) / sample_rate,
        crowded=crowding(samples, sample_rate),  # before resampling, which rounds a clipped wave
        loud=float(loud),
        soft=float(soft),
        speech_start=first / FRAMES_PER_SECOND,
        speech_end=last / FRAMES_PER_SECOND,
        start=float(levels[:EDGE_FRAMES].max()),
        end=float(levels[-EDGE_FRAMES:].max()),
        band=band,
        beyond=beyond,
        landmarks=landmarks(heard),
    )


def frame_levels(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """The level of every whole 10 ms of (n_samples,), in dB: (n_frames,), at least one."""
    power = np.mean(as_frames(samples, sample_rate) ** 2, axis=1)
    levels: np.ndarray = 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))
    return levels


def as_frames(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """(n_samples,) as whole 10 ms: (n_frames, n_samples of each) float64, at least one, filled with silence."""
    size = sample_rate // FRAMES_PER_SECOND
    frames = max(len(samples) // size, 1)
    padded = np.zeros(frames * size)
    padded[: min(len(samples), len(padded))] = samples[: len(padded)]
    return padded.reshape(frames, size)


def crowding(samples: np.ndarray, sample_rate: int) -> float:
    """How far the amplitudes of loud frames crowd: of speech large ones are rarer than small ones, of a cut wave not.

    Told from their histogram and not from the peak, above which a lossy encoding of a cut wave swings.
    """
    frames, levels = as_frames(samples, sample_rate), frame_levels(samples, sample_rate)
    amplitudes = np.abs(frames[levels > np.percentile(levels, LOUDEST) - LOUD_DB])
    if not amplitudes.size or not amplitudes.max():
        return 0.0
    counts, _ = np.histogram(amplitudes, bins=AMPLITUDES, range=(0, amplitudes.max()))
    shares = np.convolve(counts / amplitudes.size, np.ones(3), mode="valid")[AMPLITUDES // 4 :]
    return float(np.max(shares - np.minimum.accumulate(shares)))


def bandwidth(samples: np.ndarray) -> tuple[float, float]:
    """Where in Hz sounds end, and the loudest above that, in dB of the loudest band.

    Bands are 125 Hz wide, each judged by its loudest moments, for only some sounds of speech are high. Sounds end where
    these fall to 50 dB below the loudest band's.
    """
    padded = np.pad(samples, (0, N_FFT))
    windows = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH] * np.hanning(N_FFT)
    power = np.abs(np.fft.rfft(windows)[:, 1:]) ** 2
    bands = np.percentile(power.reshape(len(power), -1, BINS_A_BAND).mean(axis=2), LOUDEST, axis=0)
    levels = 10 * np.log10(np.maximum(bands, 1e-20) / max(bands.max(), 1e-20))
    last = int(np.flatnonzero(levels > -BAND_DB)[-1])
    above = levels[last + 1 + SLOPE_BANDS :]
    return (last + 1) * BINS_A_BAND * SAMPLE_RATE / N_FFT, float(above.max()) if len(above) else FLOOR_DB


def landmarks(samples: np.ndarray) -> np.ndarray:
    """Triples of peaks of the log-mel that follow one another, as hashes with their frames: (n, 2) int32.

    As Wang, "An industrial-strength audio search algorithm" (2003), whose pairs are too common in speech. They do not
    depend on level, and little on encoding, and a shift moves all frames alike.
    """
    mel = log_mel(samples[: 30 * SAMPLE_RATE], N_MELS)
    padded = np.pad(mel, ((PEAK_BANDS, PEAK_BANDS), (PEAK_FRAMES, PEAK_FRAMES)), constant_values=-np.inf)
    around = np.lib.stride_tricks.sliding_window_view(padded, (2 * PEAK_BANDS + 1, 2 * PEAK_FRAMES + 1))
    frames, bands = np.nonzero(((mel >= around.max(axis=(2, 3))) & (mel > mel.max() - PEAK_RANGE)).T)
    found = []
    for first in range(1, NEXT_PEAKS):
        for second in range(first + 1, NEXT_PEAKS + 1):
            n = max(len(frames) - second, 0)
            begin, middle, end = (slice(skip, skip + n) for skip in (0, first, second))
            steps = [(frames[at] - frames[begin]) // STEP_FRAMES for at in (middle, end)]
            hashes = bands[begin]
            for part in (bands[middle], bands[end], *steps):
                hashes = hashes * N_MELS + part  # of which steps have fewer
            short = frames[end] - frames[begin] < LONGEST_FRAMES
            found.append(np.stack([hashes[short], frames[begin][short]], axis=1))
    return np.concatenate(found).astype(np.int32)

"""How sure a word error rate is, and whether two transcripts of the same clips differ by more than chance.

Bootstrap: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (2004); of whole
speakers: Liu, Peng and others, "Statistical testing on ASR performance via blockwise bootstrap" (2020), for clips of
one voice err alike. Permutation: Fisher's, as in Pitman, "Significance tests which may be applied to samples from any
populations" (1937).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05  # p below it is called significant; the intervals are those of 1 - LEVEL
MAX_DRAWN = 2**21  # units drawn at once: what bounds the memory, about 100 MB


@dataclass(frozen=True)
class ErrorInterval:
    """A 95 % interval of a word error rate, in percent; by: what was drawn again, ``clip`` or ``speaker``."""

    low: float
    high: float
    by: str


def error_interval(
    edits: np.ndarray, words: np.ndarray, speakers: Sequence[str], samples: int, seed: int
) -> ErrorInterval:
    """The wider of two intervals of the word error rate: clips drawn again with replacement, or whole speakers.

    edits, words: (n_clips,) int; speakers: each clip's. By clip where there is only one speaker.
    """
    sums = resampled_by_unit(np.stack([edits, words], axis=1), speakers, samples, seed)
    return wider_interval({by: 100 * drawn[:, 0] / drawn[:, 1] for by, drawn in sums.items()})


def wider_interval(rates: dict[str, np.ndarray]) -> ErrorInterval:
    """The wider interval of a rate in percent, (samples,) float each, by what was drawn again."""
    found = [ErrorInterval(*percentile_interval(drawn), by) for by, drawn in rates.items()]
    return max(found, key=lambda interval: interval.high - interval.low)


def resampled_by_unit(values: np.ndarray, speakers: Sequence[str], samples: int, seed: int) -> dict[str, np.ndarray]:
    """``resampled_sums`` of (n_clips, n_columns) with clips drawn again, and where there are several, speakers."""
    units = {"clip": values}
    if len(set(speakers)) > 1:
        units["speaker"] = group_sums(values, speakers)
    return {by: resampled_sums(counts, samples, seed) for by, counts in units.items()}


def group_sums(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """The sums over each group's rows, (n_groups, n_columns) of values' dtype, in the order of the groups' names.

    values: (n_clips, n_columns); groups: each clip's.
    """
    names, places = np.unique(np.array(groups), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]), values.dtype)
    np.add.at(sums, places, values)
    return sums


def resampled_sums(values: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """The columns' sums over as many units as there are, drawn again with replacement: (samples, n_columns) float64.

    values: (n_units, n_columns) int, a row a clip or a speaker. All columns see the same draws, so that what is
    computed from several of them is paired. The same seed gives the same draws.
    """
    units = len(values)
    rng, weights = np.random.default_rng(seed), values.astype(float)
    sums = np.empty((samples, values.shape[1]))
    step = max(1, MAX_DRAWN // units)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)  # each unit's, in each sample
        sums[start : start + rows] = times @ weights
    return sums


def percentile_interval(statistics: np.ndarray) -> tuple[float, float]:
    """What lies between the outer shares of LEVEL / 2 of a statistic's resampled values, (samples,) float."""
    low, high = np.percentile(statistics, [50 * LEVEL, 100 - 50 * LEVEL])
    return float(low), float(high)


def sign_flip_p(differences: np.ndarray) -> float:
    """The two-sided p-value of a sum of paired differences, (n_units,) int; exact, nothing is drawn.

    Were the two transcripts alike but for chance, each clip's difference might as well have had the other sign: p is
    the share of all 2^n choices of signs whose sum is at least as far from 0 as the one observed. The sum is twice the
    positive part less the total, and the positive part's distribution is built up clip by clip.
    """
    sizes = np.abs(differences[differences != 0])
    total = int(sizes.sum())
    chances = np.zeros(total + 1)  # of each value of the positive part
    chances[0] = 1
    for size in sizes:
        chances /= 2
        chances[size:] += chances[:-size].copy()
    sums = np.abs(2 * np.arange(total + 1) - total)
    return min(1.0, float(chances[sums >= abs(int(differences.sum()))].sum()))

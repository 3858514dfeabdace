"""Paired intervals and p-values, against scipy's and against what chance alone gives."""

from math import comb, sqrt

import numpy as np
import pytest
from scipy import stats

from stages.asr.significance import (
    LEVEL,
    error_interval,
    group_sums,
    percentile_interval,
    resampled_sums,
    sign_flip_p,
)

CLIPS = 300


def simulate(rng: np.random.Generator, clips: int, before: float, after: float) -> tuple[np.ndarray, ...]:
    """Word edits of two models and words, (clips,) int each: some clips are harder than others, for both."""
    words, hard = rng.integers(2, 12, clips), rng.beta(1, 2, clips)
    return rng.binomial(words, before * hard), rng.binomial(words, after * hard), words


@pytest.fixture(scope="module")
def counts():
    return simulate(np.random.default_rng(3), CLIPS, 0.4, 0.5)


def wer_difference(before, after, words, axis=-1):
    return 100 * (after.sum(axis=axis) - before.sum(axis=axis)) / words.sum(axis=axis)


def interval(values: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    sums = resampled_sums(values, samples, seed)
    return percentile_interval(100 * (sums[:, 1] - sums[:, 0]) / sums[:, 2])


def quantile_error(interval: tuple[float, float], samples: int) -> float:
    """The standard error of the difference of two runs' interval ends.

    Of n draws the p-quantile has the error sqrt(p (1 - p) / n) / f, with f the density there. The statistic, a ratio of
    sums over many units, is near normal: with its spread s, f = phi(1.96) / s at both ends, which are 3.92 s apart.
    """
    spread = (interval[1] - interval[0]) / (2 * stats.norm.ppf(1 - LEVEL / 2))
    density = stats.norm.pdf(stats.norm.ppf(LEVEL / 2)) / spread
    return sqrt(2 * LEVEL / 2 * (1 - LEVEL / 2) / samples) / density


@pytest.mark.parametrize("speakers", [None, 60])
def test_intervals_agree_with_scipy(counts, speakers):
    """By clip, and by speaker, whose clips are drawn as one."""
    values, samples = np.stack(counts, axis=1), 10_000
    if speakers:
        values = group_sums(values, [f"voice {at % speakers}" for at in range(CLIPS)])
    ours = interval(values, samples, seed=1)
    theirs = stats.bootstrap(
        tuple(values.T), wer_difference, paired=True, vectorized=True, method="percentile", n_resamples=samples, rng=2
    ).confidence_interval
    assert ours == pytest.approx(theirs, abs=5 * quantile_error(theirs, samples))


def test_the_interval_of_a_rate_is_about_as_wide_as_theory_says():
    rng = np.random.default_rng(1)
    edits, words = rng.binomial(10, 0.2, size=900), np.full(900, 10)
    found = error_interval(edits, words, ["one voice"] * 900, 2000, 1)
    deviation = 100 * np.sqrt(0.2 * 0.8 / 9000)
    assert found.by == "clip"
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert found.low < 100 * edits.sum() / words.sum() < found.high


def test_the_interval_of_a_rate_depends_on_the_seed_alone_and_widens_with_fewer_clips(counts):
    edits, _, words = counts
    speakers = [f"voice {at % 30}" for at in range(CLIPS)]
    first, again, other = (error_interval(edits, words, speakers, 500, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert other.low == pytest.approx(first.low, abs=1)
    fewer = error_interval(edits[:30], words[:30], speakers[:30], 500, 1)
    assert fewer.high - fewer.low > 2 * (first.high - first.low)


@pytest.mark.parametrize(("alike", "by"), [(True, "speaker"), (False, "clip")])
def test_the_wider_interval_is_given_and_named(alike, by):
    """Twenty speakers' 400 clips: each speaker's err alike, or every speaker makes the very same errors."""
    edits = np.repeat(np.arange(20) % 5, 20) if alike else np.tile(np.arange(20) % 5, 20)
    words, speakers = np.full(400, 10), [f"voice {at // 20}" for at in range(400)]
    found = error_interval(edits, words, speakers, 1000, 1)
    assert found.by == by
    # By speaker, 20 of spread s / 20 each; by clip, 400 of the same spread: the wider is sqrt(20) times the other.
    expected = 2 * stats.norm.ppf(1 - LEVEL / 2) * 100 * np.std(np.arange(5)) / 10 / sqrt(20 if alike else 400)
    assert found.high - found.low == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("rate", [0.4, 0.43, 0.46])
def test_p_agrees_with_scipy(rate):
    """scipy's is drawn, ours exact: it lies within five standard errors of a share of so many draws."""
    rng, samples = np.random.default_rng(5), 20_000
    before, after, words = simulate(rng, CLIPS, 0.4, rate)

    def statistic(x, y, axis):
        return wer_difference(x, y, words, axis)

    theirs = stats.permutation_test(
        (before, after), statistic, permutation_type="samples", vectorized=True, n_resamples=samples, rng=rng
    ).pvalue
    ours = sign_flip_p(after - before)
    assert theirs == pytest.approx(ours, abs=5 * sqrt(ours * (1 - ours) / samples) + 1 / samples)


def test_p_of_few_clips_is_scipys_exactly():
    """Of ten clips scipy, too, goes through every choice of signs."""
    before, after = np.array([3, 0, 2, 5, 1, 0, 4, 2, 2, 1]), np.array([1, 0, 2, 3, 2, 0, 0, 1, 2, 0])
    result = stats.permutation_test(
        (before, after), lambda x, y: (y - x).sum(), permutation_type="samples", n_resamples=10_000
    )
    assert sign_flip_p(after - before) == pytest.approx(result.pvalue, abs=1e-12)


def test_p_of_equal_sizes_is_the_sign_tests():
    ones = np.array([1] * 9 + [-1] * 3 + [0] * 20)
    assert sign_flip_p(ones) == pytest.approx(2 * sum(comb(12, n) for n in range(4)) / 2**12)


def test_no_difference_has_p_1():
    assert sign_flip_p(np.zeros(7, int)) == 1
    assert sign_flip_p(np.array([2, -2])) == 1


def test_p_of_many_clips_neither_overflows_nor_vanishes():
    assert sign_flip_p(np.tile([1, -1], 5000)) == 1
    assert 0 <= sign_flip_p(np.ones(3000, int)) < 1e-300


def test_the_same_seed_draws_the_same_whatever_the_columns(counts):
    values = np.stack(counts, axis=1)
    assert (resampled_sums(values, 50, 1)[:, :2] == resampled_sums(values[:, :2], 50, 1)).all()
    assert (resampled_sums(values, 50, 1) != resampled_sums(values, 50, 2)).any()


def test_draws_in_blocks_fill_every_sample(monkeypatch, counts):
    """Every sample has as many units as there are."""
    monkeypatch.setattr("stages.asr.significance.MAX_DRAWN", 7 * CLIPS)
    assert (resampled_sums(np.ones((CLIPS, 1), int), 50, 1) == CLIPS).all()


def test_groups_are_summed_by_name():
    values = np.array([[1, 10], [2, 20], [4, 40]])
    assert group_sums(values, ["b", "a", "b"]).tolist() == [[2, 20], [5, 50]]


def test_models_that_differ_by_chance_alone_are_told_apart_in_one_of_twenty():
    """2,000 comparisons: by p, and by intervals that leave out 0; 1.5 points are three standard errors of a share."""
    comparisons, found, left_out = 2000, 0, 0
    rng = np.random.default_rng(11)
    for number in range(comparisons):
        counts = simulate(rng, 250, 0.4, 0.4)
        found += sign_flip_p(counts[1] - counts[0]) < LEVEL
        low, high = interval(np.stack(counts, axis=1), 500, number)
        left_out += low > 0 or high < 0
    print(f"significant by p: {found / comparisons:.1%}, by interval: {left_out / comparisons:.1%}")
    assert found / comparisons == pytest.approx(0.05, abs=0.015)
    assert left_out / comparisons == pytest.approx(0.05, abs=0.015)

"""Voice activity detection, with real speech from espeak-ng and the real detector."""

from itertools import pairwise

import numpy as np
import pytest

from stages.asr.vad import CHUNK_SAMPLES, SpeechSegmenter, VadOptions, split_chunks
from stages.runtime.errors import UserError
from tests.support.spoken import room, spoken_sentences

RATE = 16_000


@pytest.fixture(scope="module")
def spoken() -> tuple[np.ndarray, ...]:
    return spoken_sentences()


def segment(
    blocks: list[np.ndarray], longest: float = 6, pause: float | None = None, **options: float
) -> list[tuple[float, np.ndarray]]:
    """The starts, in seconds, and the samples of the segments with speech; longest and pause in seconds."""
    silence = None if pause is None else 1000 * pause
    vad = VadOptions(max_speech_duration_s=longest, min_silence_duration_ms=silence, **options)
    segmenter, found = SpeechSegmenter(vad), []
    for chunk in split_chunks(blocks):
        found += segmenter.feed(chunk)
    return found + list(segmenter.flush())


@pytest.mark.parametrize("n", [0, 1])
def test_a_short_clip_is_heard_whole(spoken, n):
    ((start, samples),) = segment([spoken[n]])
    assert start == 0
    assert np.array_equal(samples, spoken[n])


def test_segments_are_where_the_speech_is(spoken):
    pauses, places, pieces, at = (0.7, 1.5, 3, 0.5, 1), [], [], 0.0
    for pause, samples in zip(pauses, spoken, strict=True):
        pieces += [room(pause), samples]
        places.append((at + pause, at + pause + len(samples) / RATE))
        at = places[-1][1]
    whole = np.concatenate([*pieces, room(2)])
    found = segment([whole])
    assert len(found) == len(places)
    for (start, samples), (begun, ended) in zip(found, places, strict=True):
        assert start == pytest.approx(begun, abs=0.15)
        assert start + len(samples) / RATE == pytest.approx(ended, abs=0.15)
        first = round(start * RATE)
        assert np.array_equal(samples, whole[first : first + len(samples)])


@pytest.mark.parametrize("gain", [0.003, 0.03, 3])
def test_quiet_and_loud_speech_is_found_in_the_same_places(spoken, gain):
    whole = np.concatenate([np.concatenate([room(1), samples]) for samples in spoken])
    usual, other = segment([whole]), segment([whole * np.float32(gain)])
    assert len(other) == len(usual) == len(spoken)
    for (start, samples), (place, same) in zip(other, usual, strict=True):
        assert start == pytest.approx(place, abs=0.1)
        assert len(samples) == pytest.approx(len(same), abs=0.2 * RATE)


@pytest.mark.parametrize("size", [1, 511, 512, 16_000, 10**9])
def test_it_does_not_matter_how_the_audio_comes(spoken, size):
    whole = np.concatenate([spoken[0], room(1), spoken[2][: -RATE // 3]])
    size = min(size, len(whole))
    blocks = [whole[at : at + size] for at in range(0, len(whole), size)]
    ours, usual = segment([np.zeros(0, np.float32), *blocks]), segment([whole])
    assert [start for start, _ in ours] == [start for start, _ in usual]
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(ours, usual, strict=True))


@pytest.mark.parametrize("longest", [1.0, 2.0])
def test_speech_without_a_pause_is_cut_and_none_is_lost(spoken, longest):
    whole = np.concatenate([samples[1_500:-1_500] for samples in spoken])
    found = segment([whole], longest)
    assert len(found) > len(whole) / RATE / longest
    for (start, samples), (following, _) in pairwise(found):
        assert len(samples) <= longest * RATE
        assert start + len(samples) / RATE == pytest.approx(following, abs=0.3)
    assert sum(len(samples) for _, samples in found) > 0.9 * len(whole)


def test_it_is_cut_where_it_is_quiet(spoken):
    whole = np.concatenate([samples[1_500:-1_500] for samples in spoken])
    gap = round(1.4 * RATE)
    whole[gap : gap + 5 * CHUNK_SAMPLES] = 0
    (_, first), *_ = segment([whole], 2.0, pause=1)
    assert gap <= len(first) <= gap + 5 * CHUNK_SAMPLES


def test_a_cut_in_a_long_pause_gives_no_empty_segment(spoken):
    for seconds in (1.5, 1.9, 2.3):
        found = segment([np.concatenate([spoken[2], room(seconds), spoken[0]])], longest=2, pause=1.8)
        assert all(len(samples) > 0.25 * RATE for _, samples in found)
        assert len(found) == 2


def test_a_longer_pause_is_heard_through_where_the_window_is_long(spoken):
    whole = np.concatenate([spoken[0], room(0.4), spoken[2]])
    assert len(segment([whole], longest=6, pause=0.2)) == 2
    assert len(segment([whole], longest=30, pause=1)) == 1


def test_speech_that_the_end_cuts_off_is_still_heard(spoken):
    ((_, samples),) = segment([np.concatenate([room(1), spoken[1][: RATE + 100]])])
    assert len(samples) == pytest.approx(RATE, abs=0.2 * RATE)


def test_a_sound_too_short_for_speech_is_dropped(spoken):
    vowel = spoken[1][8_000 : 8_000 + RATE // 10]
    assert segment([np.concatenate([room(1), vowel, room(1)])]) == []


def test_no_more_than_a_window_is_kept(spoken):
    segmenter = SpeechSegmenter(VadOptions(max_speech_duration_s=2))
    for chunk in split_chunks([np.concatenate(spoken)] * 3):
        list(segmenter.feed(chunk))
        assert len(segmenter._kept) * CHUNK_SAMPLES <= 2 * RATE


def test_a_threshold_that_nothing_reaches_finds_nothing(spoken):
    assert segment([spoken[1]], threshold=1) == []


def test_what_is_shorter_than_the_shortest_speech_is_dropped(spoken):
    assert len(segment([spoken[0]])) == 1
    assert segment([spoken[0]], min_speech_duration_ms=1000) == []


def test_padding_is_kept_on_both_sides(spoken):
    whole = np.concatenate([room(1), spoken[2], room(1)])
    ((start, samples),) = segment([whole], speech_pad_ms=64)
    ((earlier, more),) = segment([whole], speech_pad_ms=160)
    assert start - earlier == pytest.approx(0.096)
    assert len(more) - len(samples) == 2 * 0.096 * RATE


def test_half_a_minute_and_a_thirtieth_of_it_are_the_defaults():
    assert VadOptions() == VadOptions(
        threshold=0.5,
        neg_threshold=None,
        min_speech_duration_ms=250,
        min_silence_duration_ms=None,
        speech_pad_ms=64,
        max_speech_duration_s=30,
    )
    assert VadOptions(max_speech_duration_s=float("inf")).within(6).max_speech_duration_s == 6
    assert VadOptions(max_speech_duration_s=5).within(6).max_speech_duration_s == 5


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("threshold", 0),
        ("threshold", 1.1),
        ("neg_threshold", 0.6),
        ("neg_threshold", -0.1),
        ("min_speech_duration_ms", -1),
        ("min_silence_duration_ms", float("nan")),
        ("speech_pad_ms", float("inf")),
        ("max_speech_duration_s", 0.5),
        ("max_speech_duration_s", float("nan")),
    ],
)
def test_options_that_make_no_sense_are_named(option, value):
    with pytest.raises(UserError, match=rf"^{option} \({value}\) must be"):
        VadOptions(**{option: value})

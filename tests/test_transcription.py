"""Long audio to text, with real speech from espeak-ng and the real detector."""

from itertools import pairwise
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from stages.asr.decoding import decode
from stages.asr.mel import log_mel
from stages.asr.shards import Shards
from stages.asr.transcription import CHUNK, SECOND, Ear, Segment, chunks, transcribe, window_text, without_loop
from stages.corpora.synthetic import Espeak, Utterance, record, short_path
from tests.support.material import allow, write_shards

RATE = 16_000
SENTENCES = (
    "hej på dig",
    "färjan från visby kommer halv två",
    "solen skiner",
    "den röda soffan är stor",
    "tack så mycket",
)


@pytest.fixture(scope="module")
def spoken() -> list[np.ndarray]:
    """The sentences, each with 80 ms before and after, over faint noise: (n,) float32 at 16 kHz."""
    with short_path(Path(espeakng_loader.get_data_path())) as data:
        espeak = Espeak(data)
        said = [Utterance("test", str(n), text, "sv", 50, 170, -26, 30, n + 1) for n, text in enumerate(SENTENCES)]
        return [record(espeak.say(one), espeak.sample_rate, one).astype(np.float32) / 32768 for one in said]


def room(seconds: float, seed: int = 1) -> np.ndarray:
    """A quiet room: faint noise."""
    return (0.0005 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def stretches(blocks: list[np.ndarray], longest: float = 6, pause: float = 0.2) -> list[tuple[float, np.ndarray]]:
    """What an ear hears: starts in seconds, and samples."""
    ear, found = Ear(round(longest * SECOND), round(pause * SECOND)), []
    for chunk in chunks(blocks):
        found += ear.hear(chunk)
    return found + list(ear.end())


def segments(model, blocks) -> list[Segment]:
    return [segment for _, segment in transcribe(model, blocks) if segment]


def time() -> np.ndarray:
    return np.arange(8 * RATE, dtype=np.float32) / RATE


def buzz(pitches: tuple[int, ...]) -> np.ndarray:
    return sum(0.2 * np.sin(2 * np.pi * pitch * time()) for pitch in pitches)


BACKGROUNDS = {
    "nothing": lambda: np.zeros(8 * RATE, np.float32),
    "faint noise": lambda: room(8),
    "loud noise": lambda: 400 * room(8),
    "hum": lambda: buzz((50, 100, 150)),
    "a tone": lambda: buzz((440,)),
    "chords": lambda: buzz((262, 330, 392)) * (time() * 2 % 1 < 0.8),
    "clicks": lambda: (np.arange(8 * RATE) % 8_000 == 0).astype(np.float32),
    "no numbers": lambda: np.full(8 * RATE, np.nan, np.float32),
    "infinity": lambda: np.full(8 * RATE, np.inf),
}


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize("gain", [1, 0.01])
def test_what_is_no_speech_gives_no_segment(talking, name, gain):
    assert segments(talking, [BACKGROUNDS[name]() * gain]) == []


def test_nothing_at_all_is_heard_as_nothing(talking):
    assert list(transcribe(talking, [])) == [(0, None)]
    assert list(transcribe(talking, [np.zeros(0, np.float32)])) == [(0, None)]


@pytest.mark.parametrize("n", [0, 1])
def test_a_short_clip_is_heard_whole(spoken, n):
    ((start, samples),) = stretches([spoken[n]])
    assert start == 0
    assert np.array_equal(samples, spoken[n])


@pytest.mark.parametrize("context", ["clip", "full"])
def test_a_clips_text_is_decodes(talking, spoken, tmp_path, context):
    talking.context = context
    clips = {str(n): samples[: 2 * RATE] for n, samples in enumerate(spoken)}
    shards = Shards(write_shards(tmp_path, clips))
    # As they were before they were packed: this model's texts turn on the last bit.
    shards.mel = lambda number: log_mel(clips[shards.entries[number].id], 80).astype(np.float32)
    texts = decode(talking, shards, 1)
    assert len(set(texts)) == len(texts)
    assert [without_loop(text) for text in texts] == [window_text(talking, samples) for samples in clips.values()]


def test_segments_are_where_the_speech_is(spoken):
    pauses, places, pieces, at = (0.7, 1.5, 3, 0.5, 1), [], [], 0.0
    for pause, samples in zip(pauses, spoken, strict=True):
        pieces += [room(pause), samples]
        places.append((at + pause, at + pause + len(samples) / RATE))
        at = places[-1][1]
    whole = np.concatenate([*pieces, room(2)])
    found = stretches([whole])
    assert len(found) == len(places)
    for (start, samples), (begun, ended) in zip(found, places, strict=True):
        assert start == pytest.approx(begun, abs=0.15)
        assert start + len(samples) / RATE == pytest.approx(ended, abs=0.15)
        first = round(start * RATE)
        assert np.array_equal(samples, whole[first : first + len(samples)])


@pytest.mark.parametrize("gain", [0.003, 0.03, 3])
def test_quiet_and_loud_speech_is_found_in_the_same_places(spoken, gain):
    whole = np.concatenate([np.concatenate([room(1), samples]) for samples in spoken])
    usual, other = stretches([whole]), stretches([whole * np.float32(gain)])
    assert len(other) == len(usual) == len(spoken)
    for (start, samples), (place, same) in zip(other, usual, strict=True):
        assert start == pytest.approx(place, abs=0.1)
        assert len(samples) == pytest.approx(len(same), abs=0.2 * RATE)


def test_a_window_at_another_level_has_the_same_text(talking, spoken):
    texts = [window_text(talking, spoken[2][: 2 * RATE] * np.float32(gain)) for gain in (0.01, 0.1)]
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize("size", [1, 511, 512, 16_000, 10**9])
def test_it_does_not_matter_how_the_audio_comes(spoken, size):
    whole = np.concatenate([spoken[0], room(1), spoken[2][: -RATE // 3]])
    size = min(size, len(whole))
    blocks = [whole[at : at + size] for at in range(0, len(whole), size)]
    ours, usual = stretches([np.zeros(0, np.float32), *blocks]), stretches([whole])
    assert [start for start, _ in ours] == [start for start, _ in usual]
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(ours, usual, strict=True))


@pytest.mark.parametrize("longest", [1.0, 2.0])
def test_speech_without_a_pause_is_cut_and_none_is_lost(spoken, longest):
    whole = np.concatenate([samples[1_500:-1_500] for samples in spoken])
    found = stretches([whole], longest)
    assert len(found) > len(whole) / RATE / longest
    for (start, samples), (following, _) in pairwise(found):
        assert len(samples) <= longest * RATE
        assert start + len(samples) / RATE == pytest.approx(following, abs=0.3)
    assert sum(len(samples) for _, samples in found) > 0.9 * len(whole)


def test_it_is_cut_where_it_is_quiet(spoken):
    whole = np.concatenate([samples[1_500:-1_500] for samples in spoken])
    gap = round(1.4 * RATE)
    whole[gap : gap + 5 * CHUNK] = 0
    (_, first), *_ = stretches([whole], 2.0, pause=1)
    assert gap <= len(first) <= gap + 5 * CHUNK


def test_a_cut_in_a_long_pause_gives_no_empty_stretch(spoken):
    for seconds in (1.5, 1.9, 2.3):
        found = stretches([np.concatenate([spoken[2], room(seconds), spoken[0]])], longest=2, pause=1.8)
        assert all(len(samples) > 0.25 * RATE for _, samples in found)
        assert len(found) == 2


def test_a_longer_pause_is_heard_through_where_the_window_is_long(spoken):
    whole = np.concatenate([spoken[0], room(0.4), spoken[2]])
    assert len(stretches([whole], longest=6, pause=0.2)) == 2
    assert len(stretches([whole], longest=30, pause=1)) == 1


def test_speech_that_the_end_cuts_off_is_still_heard(spoken):
    ((_, samples),) = stretches([np.concatenate([room(1), spoken[1][: RATE + 100]])])
    assert len(samples) == pytest.approx(RATE, abs=0.2 * RATE)


def test_a_sound_too_short_for_speech_is_dropped(spoken):
    vowel = spoken[1][8_000 : 8_000 + RATE // 10]
    assert stretches([np.concatenate([room(1), vowel, room(1)])]) == []


def test_words_come_while_the_audio_does(talking, spoken):
    given = []

    def blocks():
        for n in range(100):
            given.append(n)
            yield np.concatenate([spoken[2], room(1)])

    steps = transcribe(talking, blocks())
    heard = [next(steps)]
    while heard[-1][1] is None:
        heard.append(next(steps))
    assert len(given) <= 2
    steps.close()
    assert len(given) <= 2
    seconds = [at for at, _ in heard]
    assert seconds == sorted(seconds)
    assert max(np.diff([0, *seconds])) <= 1.1


def test_silence_too_reports_each_second_and_the_end(talking):
    seconds = [at for at, _ in transcribe(talking, [room(3.5)] * 3)]
    assert seconds[-1] == pytest.approx(10.5)
    assert max(np.diff([0, *seconds])) <= 1.1


def test_no_more_than_a_window_is_kept(spoken):
    ear = Ear(2 * SECOND, 6)
    for chunk in chunks([np.concatenate(spoken)] * 3):
        list(ear.hear(chunk))
        assert len(ear._kept) <= 2 * SECOND


def test_two_recordings_at_once_do_not_disturb_each_other(talking, spoken):
    alone = [segments(talking, [samples]) for samples in spoken[:2]]
    one, other = (transcribe(talking, np.array_split(samples, 7)) for samples in spoken[:2])
    found = [[], []]
    for steps in zip(one, other, strict=False):
        for own, (_, segment) in zip(found, steps, strict=True):
            own += [segment] if segment else []
    for own, rest in zip(found, (one, other), strict=True):
        own += [segment for _, segment in rest if segment]
    assert found == alone


def test_a_model_that_says_nothing_gives_no_segment(talking, spoken):
    allow(talking, {talking.whisper.generation_config.eos_token_id})
    assert segments(talking, spoken) == []


def test_a_loop_is_said_once():
    assert without_loop("det är så " * 12 + "sant") == "det är så sant"
    assert without_loop("ha" * 80) == "ha"
    assert without_loop("a" * 900 + "b") == "ab"
    for text in ("", "ja ja ja ja", "det kostar 1000000 kronor", "färjan från visby kommer halv två"):
        assert without_loop(text) == text

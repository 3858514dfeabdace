"""Long audio to text, with real speech from espeak-ng and the real detector."""

import numpy as np
import pytest
import torch

from stages.asr.decoding import decode
from stages.asr.mel import log_mel
from stages.asr.segments import Segment
from stages.asr.shards import Shards
from stages.asr.transcription import transcribe, transcribe_window, without_loop, word_probabilities
from stages.asr.vad import VadOptions
from tests.support.material import allow, write_shards
from tests.support.spoken import room, spoken_sentences

RATE = 16_000


@pytest.fixture(scope="module")
def spoken() -> tuple[np.ndarray, ...]:
    return spoken_sentences()


def segments(model, blocks, options: VadOptions | None = None) -> list[Segment]:
    return [segment for _, segment in transcribe(model, blocks, options) if segment]


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


@pytest.mark.parametrize("context", ["clip", "full"])
def test_a_clips_text_is_decodes(talking, spoken, tmp_path, context):
    talking.context = context
    clips = {str(n): samples[: 2 * RATE] for n, samples in enumerate(spoken)}
    shards = Shards(write_shards(tmp_path, clips))
    # As they were before they were packed: this model's texts turn on the last bit.
    shards.mel = lambda number: log_mel(clips[shards.entries[number].id], 80).astype(np.float32)
    texts = decode(talking, shards, 1)
    assert len(set(texts)) == len(texts)
    assert [without_loop(text) for text in texts] == [
        transcribe_window(talking, samples).text for samples in clips.values()
    ]


def test_a_device_with_half_precision_hears_in_it(talking, spoken, monkeypatch):
    monkeypatch.setattr("stages.asr.device.half_precision", lambda device: torch.bfloat16)
    seen = set()
    talking.whisper.model.decoder.layers[0].fc1.register_forward_hook(lambda *found: seen.add(found[2].dtype))
    segment = transcribe_window(talking, spoken[0][: 2 * RATE])
    assert seen == {torch.bfloat16} and all(0 <= word.probability <= 1 for word in segment.words)


def test_a_window_at_another_level_has_the_same_text(talking, spoken):
    gains = (2**-7, 2**-4)  # powers of two change no digit
    texts = [transcribe_window(talking, spoken[2][: 2 * RATE] * np.float32(gain)).text for gain in gains]
    assert texts[0] == texts[1] != ""


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


class StopError(Exception):
    pass


def test_a_window_is_left_before_its_next_token_and_is_else_the_same(talking, spoken):
    steps, checks = [], []

    def stop_at_third_token() -> None:
        checks.append(len(steps))
        if len(steps) == 2:
            raise StopError

    samples = spoken[2][: 2 * RATE]
    heard = transcribe_window(talking, samples)
    counted = talking.whisper.proj_out.register_forward_hook(lambda *_: steps.append(1))
    try:
        with pytest.raises(StopError):
            transcribe_window(talking, samples, check=stop_at_third_token)
        assert checks == [0, 0, 1, 2] and len(steps) == 2  # before the encoder's one layer, and each token
        again = transcribe_window(talking, samples, check=lambda: checks.append(len(steps)))
        assert again == heard and heard.text
    finally:
        counted.remove()
    assert checks[4:] == [2, *range(2, len(steps))] and len(steps) > 5


def test_silence_too_reports_each_second_and_the_end(talking):
    seconds = [at for at, _ in transcribe(talking, [room(3.5)] * 3)]
    assert seconds[-1] == pytest.approx(10.5)
    assert max(np.diff([0, *seconds])) <= 1.1


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


def test_words_are_the_texts_in_order_of_time_each_with_its_probability(talking, spoken):
    allow(talking, set(talking.tokenizer.encode("i o m", add_special_tokens=False)))
    segments = [transcribe_window(talking, samples[: 2 * RATE], start=10.0) for samples in spoken]
    assert max(len(heard.words) for heard in segments) > 1
    for heard in filter(lambda heard: heard.text, segments):
        assert [word.text for word in heard.words] == heard.text.split()
        times = [time for word in heard.words for time in (word.start, word.end)]
        assert times == sorted(times) and heard.start == 10.0 <= times[0] < times[-1] <= heard.end <= 12.0
        assert all(0 < word.probability <= 1 for word in heard.words)


def test_a_words_probability_is_that_of_its_letters(talking):
    tokens = talking.tokenizer.encode("en båt", add_special_tokens=False)
    rates = [0.9, 0.8, *[0.5] * (len(tokens) - 2)]
    first, second = word_probabilities(talking, tokens, rates, "en båt")
    assert (first, second) == (pytest.approx(0.72), pytest.approx(0.5 ** (len(tokens) - 2)))
    assert word_probabilities(talking, tokens, rates, "båt båt båt") == [pytest.approx(second)] * 3


def test_a_sentence_without_spaces_has_the_mean_of_its_tokens(talking):
    tokens = talking.tokenizer.encode("東京", add_special_tokens=False)
    rates = [0.81, 0.64] * 3
    assert len(tokens) == len(rates)
    assert word_probabilities(talking, tokens, rates, "東京") == [pytest.approx(0.72)]


def test_a_loop_is_said_once():
    assert without_loop("det är så " * 12 + "sant") == "det är så sant"
    assert without_loop("ha" * 80) == "ha"
    assert without_loop("a" * 900 + "b") == "ab"
    tamil = "பேருந்து நிலையத்தில் பயணிகள் காத்திருக்கிறார்கள், அவர்களுக்கு பேருந்து வரவில்லை என்று தெரியவில்லை. 10000 பேர் "
    for text in ("", "ja ja ja ja", "det kostar 1000000 kronor", "färjan från visby kommer halv två", tamil * 3):
        assert without_loop(text) == text


def test_options_say_what_speech_is_but_no_segment_outlasts_the_window(talking, spoken):
    audio = [np.concatenate([spoken[0], room(0.6), spoken[2], room(0.6), spoken[1]])]
    assert segments(talking, audio)
    assert segments(talking, audio, VadOptions(threshold=1)) == []
    joined = segments(talking, audio, VadOptions(min_silence_duration_ms=5000))
    assert joined
    assert all(segment.end - segment.start <= talking.window / 100 for segment in joined)

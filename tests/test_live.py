"""Text while somebody speaks: what is settled is a whole recording's, and who may speak at once."""

import base64
from pathlib import Path

import numpy as np
import pytest

from app.live import SPEAKERS, SPEAKERS_OF_ONE, LiveSpeakers, LiveTranscription, read_samples
from app.models import Models
from app.turns import QueueFullError, Turns
from stages.asr.transcription import transcribe
from stages.runtime.errors import UserError
from stages.versioning.pins import PublishedFolder
from tests.support.spoken import room, spoken_sentences

RATE = 16_000
SILENCE = base64.b64encode(bytes(2 * RATE)).decode()  # 1 s


@pytest.fixture
def speakers(tiny: Path) -> LiveSpeakers:
    return LiveSpeakers(Models(PublishedFolder(tiny), 1), Turns(4), max_seconds=3)


def speak(speakers: LiveSpeakers, id: str = "", audio: str = SILENCE, last: bool = False, client: str = "10.0.0.1"):
    return speakers.hear(id, audio, RATE, speakers.models.versions[0].name, last, client)["id"]


def test_what_is_settled_comes_at_pauses_and_is_the_whole_recordings_at_the_end(talking):
    audio = np.concatenate([part for each in spoken_sentences()[:3] for part in (each, room(0.6))])
    whole = [segment for _, segment in transcribe(talking, [audio]) if segment]
    live, settled, newest = LiveTranscription(talking, RATE), [], []
    for piece in np.array_split(audio, 37):
        live.feed(piece)
        newest.append(live.hear_on())
        settled.append(len(live.settled))
    live.feed(np.zeros(0, np.float32), last=True)
    assert live.settled == whole != []
    assert settled == sorted(settled) and 0 < settled[len(settled) // 2] < len(whole)
    assert any(newest) and newest[-1] == ""


def test_another_rate_is_resampled_as_in_one_piece(talking):
    audio = np.repeat(np.concatenate([*spoken_sentences()[:2], room(0.6)]), 3)
    texts = []
    for n_pieces in (1, 41):
        live = LiveTranscription(talking, 3 * RATE)
        for piece in np.array_split(audio, n_pieces):
            live.feed(piece)
        live.feed(np.zeros(0, np.float32), last=True)
        texts.append([(segment.start, segment.end, segment.text) for segment in live.settled])
    assert texts[0] == texts[1] != []


def test_only_so_many_speak_at_once_and_an_end_makes_room(speakers):
    first = speak(speakers)
    for _ in range(SPEAKERS_OF_ONE - 1):
        speak(speakers)
    with pytest.raises(QueueFullError):
        speak(speakers)
    for n in range(SPEAKERS - SPEAKERS_OF_ONE):
        speak(speakers, client=f"10.0.1.{n}")
    with pytest.raises(QueueFullError):
        speak(speakers, client="127.0.0.1")
    speak(speakers, first, last=True)
    with pytest.raises(UserError, match="begin anew"):
        speak(speakers, first)
    assert speak(speakers, client="127.0.0.1")


def test_nobody_begins_while_others_wait(speakers):
    speakers.turns.join("10.0.0.9")
    with pytest.raises(QueueFullError):
        speak(speakers)


def test_nobody_speaks_under_anothers_id_nor_twice_at_once_nor_for_ever(speakers):
    own = speak(speakers)
    with speakers.speakers[own].lock, pytest.raises(UserError, match="one piece of audio at a time"):
        speak(speakers, own)
    with pytest.raises(UserError, match="begin anew"):
        speak(speakers, own, client="10.0.0.2")
    for _ in range(2):
        speak(speakers, own)
    with pytest.raises(UserError, match="more audio than"):
        speak(speakers, own)
    assert own not in speakers.speakers


def test_a_model_that_there_is_not_leaves_no_speaker(speakers):
    with pytest.raises(UserError, match="there is no model nobody"):
        speakers.hear("", SILENCE, RATE, "nobody", False, "10.0.0.1")
    assert not speakers.speakers


@pytest.mark.parametrize("audio", ["", "AAA", "å", "AAAA AAAA", base64.b64encode(b"odd").decode()])
def test_only_samples_are_audio(audio):
    if audio:
        with pytest.raises(UserError, match="no base64 of 16-bit samples"):
            read_samples(audio)
    else:
        assert len(read_samples(audio)) == 0
    assert read_samples(base64.b64encode(b"\x00\x80\xff\x7f").decode()).tolist() == [-1.0, 32767 / 32768]

"""Segments as text, SubRip, WebVTT and JSON."""

import json
import re
from dataclasses import dataclass

import pytest

from app.formats import as_json, as_srt, as_txt, as_vtt
from stages.asr.segments import Word


@dataclass(frozen=True)
class Segment:
    start: float
    end: float
    text: str
    words: tuple = ()


TIME = r"(\d{2,}):([0-5]\d):([0-5]\d)[,.](\d{3})"


def cues(text: str) -> list[tuple[int, int, str]]:
    """What a strict reader makes of subtitles: blocks parted by blank lines, of one line of times and one of text."""
    found = []
    for block in text.removeprefix("WEBVTT\n\n").rstrip("\n").split("\n\n"):
        lines = block.strip("\n").split("\n")
        if lines[0].isdigit() and not text.startswith("WEBVTT"):
            assert int(lines.pop(0)) == len(found) + 1
        times, line = lines
        (*numbers,) = map(int, re.fullmatch(f"{TIME} --> {TIME}", times).groups())
        first, last = (((h * 60 + m) * 60 + s) * 1000 + ms for h, m, s, ms in (numbers[:4], numbers[4:]))
        assert "-->" not in line
        found.append((first, last, line))
    return found


def test_plain():
    segments = [Segment(0.0, 1.5, " Hej då."), Segment(61.25, 3723.0015, "Vi ses, å ä ö!")]
    assert as_txt(segments) == "Hej då.\nVi ses, å ä ö!\n"
    assert as_srt(segments) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHej då.\n\n2\n00:01:01,250 --> 01:02:03,002\nVi ses, å ä ö!\n\n"
    )
    assert as_vtt(segments) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHej då.\n\n00:01:01.250 --> 01:02:03.002\nVi ses, å ä ö!\n"
    )


def test_json_has_all_to_the_millisecond():
    word = Word(0.1, 0.70049, "Hej", 0.98765)
    timed = {"start": 0.1, "end": 0.7, "text": "Hej"}
    assert json.loads(as_json([Segment(0.0, 1.50049, "Hej", (word,))])) == {
        "text": "Hej",
        "segments": [{"start": 0.0, "end": 1.5, "text": "Hej", "words": [timed | {"probability": 0.988}]}],
    }


def test_nothing_was_said():
    for segments in ([], [Segment(0, 1, "")], [Segment(0, 1, " \n ")]):
        assert (as_txt(segments), as_srt(segments), as_vtt(segments)) == ("", "", "WEBVTT\n")


HARD = [
    "a --> b",
    "-->",
    "a\n\nb",
    "1\n00:00:01,000 --> 00:00:02,000\nc",
    "<b>å</b> & <c>",
    "\r\n\u2028x\x85y",
    "7",
    "NOTE x",
]


@pytest.mark.parametrize("text", HARD)
def test_any_text_stays_one_subtitle(text):
    segments = [Segment(0, 1, "före"), Segment(1, 2, text), Segment(2, 3, "efter")]
    for written in (as_srt(segments), as_vtt(segments)):
        assert [cue[:2] for cue in cues(written)] == [(0, 1000), (1000, 2000), (2000, 3000)]
        assert [cues(written)[0][2], cues(written)[2][2]] == ["före", "efter"]
    assert len(as_txt(segments).split("\n")) == 4


def test_signs_of_webvtt_are_escaped():
    line = cues(as_vtt([Segment(0, 1, "<v Bo> A & B --> &lt;")]))[0][2]
    assert line == "&lt;v Bo&gt; A &amp; B --&gt; &amp;lt;"
    assert cues(as_srt([Segment(0, 1, "A & B <c>")]))[0][2] == "A & B <c>"


def test_times_only_go_on():
    segments = [Segment(-0.5, 2, "a"), Segment(1.5, 1.0, "b"), Segment(1, 1, "c"), Segment(1.9999, 2.00001, "d")]
    for written in (as_srt(segments), as_vtt(segments)):
        times = [time for cue in cues(written) for time in cue[:2]]
        assert times == sorted(times)
        assert all(first < last for first, last, _ in cues(written))
        assert [cue[2] for cue in cues(written)] == ["a", "b", "c", "d"]


def test_hours_beyond_two_digits():
    segments = [Segment(359_999.9994, 360_000, "a"), Segment(3_600_000, 3_600_001.5, "b")]
    assert "99:59:59,999 --> 100:00:00,000\n" in as_srt(segments)
    assert "1000:00:00.000 --> 1000:00:01.500\n" in as_vtt(segments)

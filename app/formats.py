"""Segments as text, SubRip, WebVTT and JSON. A segment has ``start`` and ``end`` in seconds, ``text`` and ``words``."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

ARROW = "-->"  # parts the times of a subtitle, so that it must not stand in its text
Subtitle = tuple[int, int, str]  # first and last millisecond, and one line of text


def as_txt(segments: Iterable) -> str:
    """One line a segment."""
    return "".join(f"{line}\n" for _, _, line in subtitles(segments))


def as_srt(segments: Iterable) -> str:
    """Numbered subtitles; SubRip has no escapes, so that an arrow in the text is written as one character."""
    return "".join(
        f"{number}\n{timestamp(first, ',')} {ARROW} {timestamp(last, ',')}\n{line.replace(ARROW, '→')}\n\n"
        for number, (first, last, line) in enumerate(subtitles(segments), start=1)
    )


def as_vtt(segments: Iterable) -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1), with its three special characters escaped."""
    cues = [
        f"{timestamp(first, '.')} {ARROW} {timestamp(last, '.')}\n{escape_vtt(line)}\n"
        for first, last, line in subtitles(segments)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def as_json(segments: Iterable) -> str:
    """All that is known, as ``/transcribe`` gives it."""
    return json.dumps(as_values(segments), ensure_ascii=False, indent=1) + "\n"


def as_values(segments: Iterable) -> dict[str, Any]:
    """The text, and its segments with their words; times in seconds, to the millisecond."""
    parts = [
        {
            **timed(segment),
            "words": [timed(word) | {"probability": round(word.probability, 3)} for word in segment.words],
        }
        for segment in segments
    ]
    return {"text": " ".join(part["text"] for part in parts), "segments": parts}


def timed(piece: Any) -> dict[str, Any]:
    return {"start": round(piece.start, 3), "end": round(piece.end, 3), "text": piece.text}


def subtitles(segments: Iterable) -> Iterator[Subtitle]:
    """Segments that say something; each lasts at least 1 ms and begins no earlier than the one before ended."""
    earliest = 0
    for segment in segments:
        line = " ".join(segment.text.split())
        if line:
            first = max(earliest, round(1000 * segment.start))
            earliest = max(first + 1, round(1000 * segment.end))
            yield first, earliest, line


def timestamp(milliseconds: int, point: str) -> str:
    """Hours, of two digits or more, minutes, seconds and milliseconds: 00:01:02,345."""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"


def escape_vtt(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

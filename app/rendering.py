"""What the page shows of models, transcripts and progress, as HTML and lines of text."""

import html
import time
from pathlib import Path
from urllib.parse import quote

from app.comparison import Pieces, mark_differences
from app.models import Models
from app.texts import format_data, format_decimal, format_time, translate, translate_error
from app.transcriber import TranscriptionProgress
from stages.asr.segments import Segment, Word
from stages.versioning.pins import Version

UNSURE = 0.6  # the probability below which a word is shown as unsure


def model_choices(models: Models, language: str = "en") -> list[tuple[str, str]]:
    """The versions as a list shows them, short enough for a telephone, with their names."""
    return [(version_label(version, language), version.name) for version in models.versions]


def version_label(version: Version, language: str) -> str:
    if version.wer is None:
        return f"{version.name} · {translate(language, 'unmeasured').lower()}"
    return translate(language, "choice", name=version.name, wer=format_decimal(language, version.wer))


def version_details(version: Version, language: str) -> str:
    """The line below a version: how good, on what data, which commit."""
    parts = [translate(language, "unmeasured")]
    if version.wer is not None:
        parts = [translate(language, "wer", wer=format_decimal(language, version.wer))]
        if version.wer_low is not None and version.wer_high is not None:
            low, high = format_decimal(language, version.wer_low), format_decimal(language, version.wer_high)
            parts[0] += translate(language, "interval", low=low, high=high)
    if version.untrained:
        parts.append(translate(language, "untrained"))
    elif version.data:
        parts.append(translate(language, "trained_on", data=format_data(language, version.data)))
    if version.commit:
        parts.append(translate(language, "commit", commit=version.commit[:7]))
    return " · ".join(parts)


def failed_text(name: str, reason: str, language: str) -> str:
    """Why a version is not the one that the page begins with."""
    return translate(language, "not_first", name=name, reason=translate_error(language, reason))


def is_synthetic(version: Version) -> bool:
    """Whether all that a model heard was the built-in corpus."""
    return version.data.partition(",")[0] == "synthetic" and not version.untrained


def transcript_text(segments: list[Segment]) -> str:
    return " ".join(segment.text for segment in segments)


def transcript_html(name: str, segments: list[Segment], play: str = "") -> str:
    """A model's segments with their times, which only grows at its end: the server sends what is new.

    play: what a segment's button does, in words; "" where there is nothing to play.
    """
    return f"<h2>{html.escape(name)}</h2>" + "".join(
        segment_html(each, [False] * len(each.text), play) for each in segments
    )


def compared_html(name: str, segments: list[Segment], pieces: Pieces, play: str = "") -> str:
    """The same, with marks on what differs; ``pieces`` are those of ``transcript_text(segments)``."""
    differs = [bool(mark) for text, mark in pieces for _ in text]
    place, lines = 0, []
    for segment in segments:
        lines.append(segment_html(segment, differs[place : place + len(segment.text)], play))
        place += len(segment.text) + 1  # the space between two segments
    return f"<h2>{html.escape(name)}</h2>" + "".join(lines)


def segment_html(segment: Segment, differs: list[bool], play: str) -> str:
    """A segment, word by word. differs: for each character of its text whether it is to be marked."""
    place, words = 0, []
    for word in segment.words or [Word(segment.start, segment.end, text, 1.0) for text in segment.text.split()]:
        words.append(word_html(word, any(differs[place : place + len(word.text)])))
        place += len(word.text) + 1
    time = f"<time>{format_time(segment.start)}</time>"
    if play:
        time = f'<button type="button" aria-label="{play} {format_time(segment.start)}">{time}</button>'
    text = " ".join(words)
    times = f'data-start="{segment.start:.2f}" data-end="{segment.end:.2f}"'
    return f'<p {times} dir="auto">{time}<span>{text}</span></p>'


def word_html(word: Word, differs: bool) -> str:
    text = html.escape(word.text)
    unsure = f' class="unsure" title="{word.probability:.0%}"' if word.probability < UNSURE else ""
    return f'<i data-start="{word.start:.2f}"{unsure}>{f"<mark>{text}</mark>" if differs else text}</i>'


def reference_html(said: str, heard: str, language: str) -> str:
    """What is known to be said, with marks on what was heard otherwise; "" where nothing is known."""
    if not said:
        return ""
    pieces = mark_differences(said, heard)[0] if heard else [(said, None)]
    text = "".join(f"<mark>{html.escape(piece)}</mark>" if mark else html.escape(piece) for piece, mark in pieces)
    return f'<p><b>{translate(language, "reference")}</b> <span dir="auto">{text}</span></p>'


def live_html() -> str:
    """An empty line, in which page.js writes what is being said; each differs, to replace the last one."""
    return f'<p aria-live="polite" dir="auto" data-made="{time.monotonic()}"></p>'


def player_html(path: Path, language: str) -> str:
    """The recording, from gradio's folder, to be listened to."""
    label = translate(language, "player")
    return f'<audio controls preload="auto" aria-label="{label}" src="gradio_api/file={quote(str(path))}"></audio>'


def status_html(text: str) -> str:
    return f'<p role="status">{html.escape(text)}</p>'


def progress_html(progress: TranscriptionProgress, language: str) -> str:
    """How far it has come, as a line of text over a bar, which has no end where that is not known."""
    share, text = None, translate(language, "loading")
    if progress.step == "waiting":
        text = translate(language, "place", place=progress.ahead, seconds=max(round(progress.wait_seconds), 1))
    elif progress.step in ("downloading", "fetching"):
        share = progress.downloaded
        text = translate(language, progress.step, percent=round(100 * share))
    elif progress.step == "transcribing" and progress.total_seconds:
        share = progress.seconds / progress.total_seconds
        times = {"time": format_time(progress.seconds), "total": format_time(progress.total_seconds)}
        text = translate(language, "transcribed_of", **times)
    elif progress.step == "transcribing":
        text = translate(language, "transcribed", time=format_time(progress.seconds))
    value = "" if share is None else f' value="{min(share, 1):.3f}"'
    return f'{status_html(text)}<progress aria-label="{translate(language, "progress")}"{value}></progress>'

"""What the page shows of models, transcripts and progress, as HTML and lines of text."""

import html
from itertools import groupby
from operator import itemgetter

from app.comparison import Pieces
from app.models import Models
from app.texts import format_decimal, format_time, translate
from app.transcriber import TranscriptionProgress
from stages.asr.transcription import Segment
from stages.versioning.pins import Version


def model_choices(models: Models) -> list[tuple[str, str]]:
    """The versions as a list shows them, in any language, with their names."""
    return [(f"{version.name} · {version}", version.name) for version in models.versions]


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
        parts.append(translate(language, "trained_on", data=version.data))
    if version.commit:
        parts.append(translate(language, "commit", commit=version.commit[:7]))
    return " · ".join(parts)


def transcript_text(segments: list[Segment]) -> str:
    return " ".join(segment.text for segment in segments)


def transcript_html(name: str, segments: list[Segment]) -> str:
    """A model's segments with their times, which only grows at its end: the server sends what is new."""
    return timed_lines(name, segments, [html.escape(segment.text) for segment in segments])


def compared_html(name: str, segments: list[Segment], pieces: Pieces) -> str:
    """The same, with marks on what differs; ``pieces`` are those of ``transcript_text(segments)``."""
    characters = iter([(character, differs) for text, differs in pieces for character in text])
    lines = []
    for segment in segments:
        runs = groupby([next(characters) for _ in segment.text], key=itemgetter(1))
        next(characters, None)  # the space between two segments
        texts = [(html.escape("".join(character for character, _ in run)), differs) for differs, run in runs]
        lines.append("".join(f"<mark>{text}</mark>" if differs else text for text, differs in texts))
    return timed_lines(name, segments, lines)


def timed_lines(name: str, segments: list[Segment], lines: list[str]) -> str:
    rows = zip(segments, lines, strict=True)
    text = "".join(f"<p><time>{format_time(segment.start)}</time><span>{line}</span></p>" for segment, line in rows)
    return f"<h2>{html.escape(name)}</h2>{text}"


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

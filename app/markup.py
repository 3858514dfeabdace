"""What the page shows of models, transcripts and progress, as HTML and lines of text."""

import html
from itertools import groupby
from operator import itemgetter

from app.comparison import Pieces
from app.hearing import Progress
from app.models import Models
from app.texts import clock, number, say
from stages.asr.transcription import Segment
from stages.versioning.pins import Version


def choices(models: Models) -> list[tuple[str, str]]:
    """The versions as a list shows them, in any language, with their names."""
    return [(f"{version.name} · {version}", version.name) for version in models.versions]


def details(version: Version, language: str) -> str:
    """The line below a version: how good, on what data, which commit."""
    parts = [say(language, "unmeasured")]
    if version.wer is not None:
        parts = [say(language, "wer", wer=number(language, version.wer))]
        if None not in (version.wer_low, version.wer_high):
            ends = {"low": number(language, version.wer_low), "high": number(language, version.wer_high)}
            parts[0] += say(language, "interval", **ends)
    if version.untrained:
        parts.append(say(language, "untrained"))
    elif version.data:
        parts.append(say(language, "trained_on", data=version.data))
    if version.commit:
        parts.append(say(language, "commit", commit=version.commit[:7]))
    return " · ".join(parts)


def joined(segments: list[Segment]) -> str:
    return " ".join(segment.text for segment in segments)


def transcript(name: str, segments: list[Segment]) -> str:
    """A model's segments with their times, as HTML that only grows at its end: the server sends what is new."""
    return listed(name, segments, [html.escape(segment.text) for segment in segments])


def marked(name: str, segments: list[Segment], pieces: Pieces) -> str:
    """The same, with marks where ``mark`` found a difference; ``pieces`` are those of the joined segments."""
    signs = iter([(sign, differs) for text, differs in pieces for sign in text])
    lines = []
    for segment in segments:
        runs = groupby([next(signs) for _ in segment.text], key=itemgetter(1))
        next(signs, None)  # the space between two segments
        texts = [(html.escape("".join(sign for sign, _ in run)), differs) for differs, run in runs]
        lines.append("".join(f"<mark>{text}</mark>" if differs else text for text, differs in texts))
    return listed(name, segments, lines)


def listed(name: str, segments: list[Segment], lines: list[str]) -> str:
    rows = zip(segments, lines, strict=True)
    text = "".join(f"<p><time>{clock(segment.start)}</time><span>{line}</span></p>" for segment, line in rows)
    return f"<h2>{html.escape(name)}</h2>{text}"


def sentence(text: str) -> str:
    return f'<p role="status">{html.escape(text)}</p>'


def bar(progress: Progress, language: str) -> str:
    """How far it has come, as a line of text over a bar, which has no end where that is not known."""
    share, words = None, say(language, "loading")
    if progress.step == "fetching":
        share, words = progress.fetched, say(language, "fetching", percent=round(100 * progress.fetched))
    elif progress.step == "hearing" and progress.total:
        share, ends = progress.heard / progress.total, {"heard": clock(progress.heard), "total": clock(progress.total)}
        words = say(language, "heard_of", **ends)
    elif progress.step == "hearing":
        words = say(language, "heard", heard=clock(progress.heard))
    value = "" if share is None else f' value="{min(share, 1):.3f}"'
    return f'{sentence(words)}<progress aria-label="{say(language, "progress")}"{value}></progress>'

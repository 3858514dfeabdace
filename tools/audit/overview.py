"""An audit as numbers, as a table for a terminal, and as a page."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.asr.clips import SPLITS
from stages.asr.text import normalise
from stages.params_file import yaml_text
from tools.audit.findings import AuditedClip, Finding
from tools.audit.kinds import KINDS
from tools.audit.sounds import Sound

WIDTH = 100
SHOWN = 3  # clips of a kind in the terminal
MOST = 2_000  # findings on a page, so that a browser stays quick
AT_ONCE = 20  # of them before one asks for more


@dataclass(frozen=True)
class Audit:
    """What was audited, what was found, and what is how the whole corpus is."""

    folder: Path
    clips: list[AuditedClip]
    findings: list[Finding]
    notes: list[str]
    model: str

    def splits(self) -> dict[str, dict[str, Any]]:
        """Clips, hours, speakers and medians of each split."""
        return {split: split_numbers([one for one in self.clips if one.split == split]) for split in SPLITS}

    def counts(self) -> dict[str, int]:
        """Clips by kind, of kinds that were found."""
        found = {kind: len({one.number for one in self.findings if one.kind == kind}) for kind in KINDS}
        return {kind: count for kind, count in found.items() if count}

    def drop(self) -> dict[str, list[str]]:
        """What download.drop is to be: the clips to leave out by reason, each under its first."""
        seen: set[str] = set()
        reasons: dict[str, list[str]] = defaultdict(list)
        for one in self.findings:
            name = self.clips[one.number].clip.id
            if one.drop and name not in seen:
                seen.add(name)
                reasons[one.kind].append(name)
        return {kind: sorted(names) for kind, names in reasons.items()}


def split_numbers(clips: Sequence[AuditedClip]) -> dict[str, Any]:
    sounds = [one.sound for one in clips if isinstance(one.sound, Sound)]
    rates = [rate for one in clips if (rate := letters_a_second(one)) is not None]
    return {
        "clips": len(clips),
        "hours": round(sum(sound.seconds for sound in sounds) / 3600, 3),
        "speakers": len({one.clip.speaker for one in clips}),
        "median_seconds": round(statistics.median([sound.seconds for sound in sounds]), 2) if sounds else None,
        "median_letters_a_second": round(statistics.median(rates), 1) if rates else None,
        "median_loud_db": round(statistics.median([sound.loud for sound in sounds]), 1) if sounds else None,
    }


def letters_a_second(one: AuditedClip) -> float | None:
    """Of speech, silence before and after left out; None where nothing is heard."""
    if not isinstance(one.sound, Sound) or one.sound.speech_seconds <= 0:
        return None
    return len(normalise(one.clip.text, apart=False)) / one.sound.speech_seconds


# For programs


def as_values(audit: Audit) -> dict[str, Any]:
    """All of it, as JSON has it."""
    return {
        "splits": audit.splits(),
        "counts": audit.counts(),
        "findings": [
            {
                "kind": one.kind,
                "split": audit.clips[one.number].split,
                "clip": audit.clips[one.number].clip.id,
                "text": audit.clips[one.number].clip.text,
                "detail": one.detail,
                "with": audit.clips[one.partner].clip.id if one.partner is not None else None,
                "drop": one.drop,
            }
            for one in audit.findings
        ],
        "notes": audit.notes,
        "drop": audit.drop(),
    }


# For a terminal


def as_table(audit: Audit) -> str:
    """Splits, then kinds with their worst clips, then what to paste."""
    lines = [f"{'Split':<14}{'clips':>8}{'hours':>9}{'speakers':>10}{'s a clip':>10}{'letters/s':>11}{'loud, dB':>10}"]
    for split, numbers in audit.splits().items():
        medians = [numbers[key] for key in ("median_seconds", "median_letters_a_second", "median_loud_db")]
        seconds, rate, loud = ("–" if value is None else f"{value:.1f}" for value in medians)
        counts = f"{numbers['clips']:>8,}{numbers['hours']:>9.2f}{numbers['speakers']:>10,}"
        lines.append(f"{split:<14}{counts}{seconds:>10}{rate:>11}{loud:>10}")
    lines += ["", *(f"note: {note}" for note in audit.notes)]
    counts_by_kind = audit.counts()
    lines.append(f"{'Found':<18}{'clips':>6}  worst first")
    for kind, count in counts_by_kind.items():
        found = [one for one in audit.findings if one.kind == kind]
        for place, one in enumerate(found[:SHOWN]):
            start = f"{kind:<18}{count:>6}  " if place == 0 else " " * 26
            lines.append(crop(f"{start}{audit.clips[one.number].clip.id}: {one.detail}"))
    if not counts_by_kind:
        lines.append("nothing")
    if not audit.model:
        lines.append("Without --model: wrong transcripts of about the right length are not looked for.")
    return "\n".join(lines)


def drop_yaml(audit: Audit) -> str:
    """What to paste into params.yaml; empty where there is nothing to leave out."""
    found = audit.drop()
    return yaml_text({"download": {"drop": found}}) if found else ""


def crop(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


# As a page


@dataclass(frozen=True)
class Listed:
    """A finding on the page; audio: a data URI, or ""."""

    finding: Finding
    clip: AuditedClip
    seconds: float | None
    audio: str


def write_page(audit: Audit, path: Path) -> str:
    """Write the page, with the audio of what was found as far as it fits; returns a line that says so."""
    from stages.runtime.files import write_text
    from tools.report.rendering import MEGABYTE, render

    text = render("audit.html", page_context(audit), Path(__file__).parent)
    write_text(path, text)
    return f"{path}: {len(text.encode()) / MEGABYTE:.1f} MB, to open in a browser"


def page_context(audit: Audit) -> dict[str, Any]:
    shown = in_turn(audit.findings)[:MOST]
    audio = audio_by_number(audit, dict.fromkeys(one.number for one in shown))
    order = {one: place for place, one in enumerate(audit.findings)}
    listed = [
        Listed(one, clip, sound.seconds if isinstance(sound, Sound) else None, audio.get(one.number, ""))
        for one in sorted(shown, key=order.__getitem__)
        for clip in [audit.clips[one.number]]
        for sound in [clip.sound]
    ]
    return {
        "folder": str(audit.folder),
        "splits": audit.splits(),
        "counts": audit.counts(),
        "kinds": KINDS,
        "findings": listed,
        "total": len(audit.findings),
        "faulty": len({one.number for one in audit.findings}),
        "heard": len(audio),
        "at_once": AT_ONCE,
        "notes": audit.notes,
        "model": audit.model,
        "drop": drop_yaml(audit),
        "plots": list(histograms(audit.clips)),
    }


def in_turn(findings: Iterable[Finding]) -> list[Finding]:
    """The worst of each kind first, then the next of each: so that a common kind leaves room for the others."""
    ranks: dict[str, int] = defaultdict(int)
    ranked = []
    for one in findings:
        ranked.append((ranks[one.kind], one))
        ranks[one.kind] += 1
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]


def audio_by_number(audit: Audit, numbers: Iterable[int]) -> dict[int, str]:
    """The audio of clips as data URIs, as many as a page holds, in the order given."""
    from stages.asr.audio import AudioError, read_audio
    from stages.asr.mel import SAMPLE_RATE
    from stages.runtime.progress import ProgressBar
    from tools.report.sentences import AUDIO_BYTES, encode

    found: dict[int, str] = {}
    left = AUDIO_BYTES
    for number in ProgressBar(list(numbers), unit="clip", desc="audio", leave=False):
        try:
            uri = encode(read_audio(audit.clips[number].path, SAMPLE_RATE))
        except (AudioError, OSError):
            continue  # which is the finding itself
        left -= len(uri)
        if left < 0:
            break
        found[number] = uri
    return found


def histograms(clips: Sequence[AuditedClip]) -> Iterator[Any]:
    """How long, how loud, how fast and how wide the clips are, and how long their texts."""
    import numpy as np
    import plotly.graph_objects as go

    from tools.report.figures import CURVE_HEIGHT, Plot, base_layout, figure_json

    values: dict[tuple[str, str], dict[str, list[float]]] = {
        ("seconds", "Seconds of a clip"): {},
        ("letters", "Letters of a text"): {},
        ("rate", "Letters a second of speech"): {},
        ("loud", "Level of a clip’s loudest moments, dB of full scale"): {},
        ("band", "Highest frequency in a clip, Hz"): {},
    }
    for split in SPLITS:
        chosen = [one for one in clips if one.split == split]
        sounds = [one.sound for one in chosen if isinstance(one.sound, Sound)]
        rows: list[list[float]] = [
            [sound.seconds for sound in sounds],
            [float(len(normalise(one.clip.text, apart=False))) for one in chosen],
            [rate for one in chosen if (rate := letters_a_second(one)) is not None],
            [sound.loud for sound in sounds],
            [sound.band for sound in sounds],
        ]
        for by_split, row in zip(values.values(), rows, strict=True):
            by_split[split] = row
    colours = {"train": "var(--before)", "validation": "var(--first)", "test": "var(--second)"}
    for (name, title), by_split in values.items():
        pooled = [value for row in by_split.values() for value in row]
        if not pooled:
            continue
        low, high = np.percentile(pooled, [0, 99.5])  # a few very long ones would leave no room
        edges = np.linspace(low, max(high, low + 1e-6), 41)
        traces = []
        for split, row in by_split.items():
            counts, _ = np.histogram(np.minimum(row, high), edges)
            middles = ((edges[1:] + edges[:-1]) / 2).round(3).tolist()
            traces.append(go.Bar(x=middles, y=counts.tolist(), name=split, marker={"color": colours[split]}))
        figure = go.Figure(traces, base_layout(CURVE_HEIGHT) | {"barmode": "stack", "bargap": 0.05})
        figure.update_xaxes(nticks=8)
        figure.update_yaxes(title_text="clips", nticks=6)
        yield Plot(name, title, "", figure_json(figure), CURVE_HEIGHT, [], [])

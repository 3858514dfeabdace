"""A comparison as text of at most 100 columns."""

import re
import string
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import click
import jiwer

from tools.compare.differences import Comparison, Difference, Group, Result, Sentence, ValueChanges

WIDTH = 100
FEW = 20  # speakers: cluster bootstraps need more (Cameron, Gelbach and Miller 2008)
SPEAKERS = 12  # rows of that table
LISTED = 12  # params, data or modules that differ
HOLDS_ZERO = "the interval by speaker holds 0: on other speakers WER may not differ so"
EDIT = re.compile(r"\[[^\]]*→[^\]]*\]")


def render_tables(result: Result, model: str) -> str:
    """All of it: who is compared, the differences, then where they lie and what may have caused them."""
    letters = string.ascii_uppercase[: len(result.revisions)]
    parts = [
        scores(result, model, letters),
        differences(result, letters),
        *group_tables(result, letters),
        *(
            part
            for letter, other in zip(letters[1:], result.comparisons, strict=True)
            for part in (changed_sentences(other, letter), origins(other, letter))
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def scores(result: Result, model: str, letters: str) -> str:
    lines = [f"{f'Test, %, of models/{model}':<56}{'WER':>7}   {'95 % interval':<27}{'CER':>7}"]
    for letter, score in zip(letters, result.revisions, strict=True):
        wide = score.wer_interval
        lines.append(
            f"{letter}  {crop(score.name, 40):<42}{score.commit[:7]:<11}{score.wer:>7.2f}   "
            f"{f'{wide.low:.2f} to {wide.high:.2f} by {wide.by}':<27}{score.cer:>7.2f}"
        )
    speakers = f", {len(result.speakers)} speakers" if result.speakers else ""
    lines.append(f"{result.clips:,} clips, {result.words:,} words{speakers}")
    return "\n".join(lines)


def differences(result: Result, letters: str) -> str:
    """A line for WER and one for CER of each B, the wider interval first, and how to take them."""
    wider = "95 % intervals, the wider first" if result.speakers else "95 % interval"
    lines = [f"{'Against A, points':<20}{wider:<54}p"]
    for letter, other in zip(letters[1:], result.comparisons, strict=True):
        for start, change in ((f"{letter}  WER", other.wer), ("   CER", other.cer)):
            intervals = "".join(f"{text:<28}" for text in interval_texts(change))
            lines.append(f"{start}{change.points:>+10.2f}    {intervals:<54}{p_text(change.p):<9}{verdict(change)}")
        lines.append(f"   clips: {other.better:,} better, {other.worse:,} worse, {other.equal:,} with as many errors")
        if holds_zero(other):
            lines.append(f"   {HOLDS_ZERO}")
    if caution := few_speakers(result):
        lines.append(f"   {caution}")
    return "\n".join(lines)


def holds_zero(other: Comparison) -> bool:
    """Whether other speakers may not show what these clips show."""
    if not other.wer.significant or other.wer.by_speaker is None:
        return False
    low, high = other.wer.by_speaker
    return low <= 0 <= high


def few_speakers(result: Result) -> str:
    """What to think of an interval by few speakers; "" where there are enough, or none known."""
    few = 1 < len(result.speakers) < FEW
    return f"with only {len(result.speakers)} speakers, the interval by speaker is likely too narrow" if few else ""


def interval_texts(change: Difference) -> list[str]:
    """``+0.21 to +1.30 by speaker``, the wider first."""
    found = [(change.by_clip, "clip")] + ([(change.by_speaker, "speaker")] if change.by_speaker else [])
    found.sort(key=lambda interval: interval[0][0] - interval[0][1])
    return [f"{low:+.2f} to {high:+.2f} by {unit}" for (low, high), unit in found]


def p_text(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def verdict(change: Difference) -> str:
    """Of significance by p."""
    if not change.significant:
        return "not significant" if change.points else "equal"
    return click.style("worse", fg="red") if change.points > 0 else click.style("better", fg="green")


def group_tables(result: Result, letters: str) -> Iterator[str]:
    yield group_table("WER, % by length", result.lengths, letters)
    few = len(result.speakers) <= SPEAKERS
    shown = result.speakers if few else sorted(result.speakers, key=spread, reverse=True)[:SPEAKERS]
    rows = (result.voices if len(result.voices) > 1 else []) + shown
    table = group_table("WER, % by speaker", rows, letters)
    if not few:
        table += f"\n… the {SPEAKERS} of {len(result.speakers)} speakers that changed most; --json has all"
    yield table


def spread(group: Group) -> float:
    """How many points the runs are apart, times the clips, so that a speaker of one clip does not come first."""
    return (max(group.wer) - min(group.wer)) * group.clips


def group_table(title: str, groups: list[Group], letters: str) -> str:
    if not groups:
        return ""
    two = len(letters) == 2
    lines = [f"{title:<24}{'clips':>7}" + "".join(f"{letter:>7}" for letter in letters) + "   B − A" * two]
    for group in groups:
        change = f"{group.wer[1] - group.wer[0]:>+8.1f}" if two else ""
        rates = "".join(f"{rate:>7.1f}" for rate in group.wer)
        lines.append(f"{crop(group.name, 23):<24}{group.clips:>7}{rates}{change}")
    return "\n".join(lines)


def changed_sentences(other: Comparison, letter: str) -> str:
    blocks = []
    for title, found in (("better", other.most_better), ("worse", other.most_worse)):
        if found:
            blocks.append(f"Most {title} in {letter}, [said→heard]")
            blocks += [sentence_text(sentence, letter) for sentence in found]
    return "\n".join(blocks)


def sentence_text(sentence: Sentence, letter: str) -> str:
    before, after = sentence.edits
    speaker = f", {crop(sentence.speaker, 30)}" if sentence.speaker else ""
    head = f"  {crop(sentence.clip, 40)}{speaker}: {before} → {after} word error{'s' * (after != 1)}"
    texts = (
        textwrap.fill(
            mark_edits(sentence.reference, heard) or "(nothing)",
            WIDTH,
            initial_indent=f"    {who}  ",
            subsequent_indent=" " * 7,
            break_long_words=True,
            break_on_hyphens=False,
        )
        for who, heard in zip(("A", letter), sentence.heard, strict=True)
    )
    return "\n".join([head, *(EDIT.sub(lambda edit: click.style(edit[0], fg="red"), text) for text in texts)])


def mark_edits(reference: str, heard: str) -> str:
    """What was heard, with ``[said→heard]`` where it is not what was said; both normalised."""
    output = jiwer.process_words(reference, heard)
    said, text = output.references[0], output.hypotheses[0]
    words: list[str] = []
    for chunk in output.alignments[0]:
        left, right = said[chunk.ref_start_idx : chunk.ref_end_idx], text[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            words += right
        else:
            edits = max(len(left), len(right))
            words += [f"[{a}→{b}]" for a, b in zip(left or [""] * edits, right or [""] * edits, strict=True)]
    return " ".join(words)


def origins(other: Comparison, letter: str) -> str:
    """What differs of what made A and B."""
    lines = [f"What made {letter} differently from A"]
    lines += listed("params", other.params, lambda value: "none" if value is None else str(value))
    lines += listed("data", other.data, lambda value: value[:7] if value else "none")
    lines += listed("code", other.code, lambda value: value[:7] if value else "none")
    return "\n".join(lines if len(lines) > 1 else [f"{lines[0]}: nothing"])


def listed(kind: str, found: ValueChanges, show: Callable[[Any], str]) -> list[str]:
    rows: list[str] = []
    for key, (before, after) in list(found.items())[:LISTED]:
        text = f"{crop(show(before), 26)} → {crop(show(after), 26)}"
        rows.append(f"{'' if rows else kind:<8}{crop(key, 32):<34}{text}")
    if len(found) > LISTED:
        rows.append(f"{'':<8}… and {len(found) - LISTED} more; --json has all")
    return [f"  {row}" for row in rows]


def crop(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"

"""How systems differ from the first on one test set: rates, intervals, p-values, groups, sentences, origins."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np

from stages.asr.scoring import clip_edits, word_errors
from stages.asr.significance import (
    LEVEL,
    ErrorInterval,
    group_sums,
    percentile_interval,
    resampled_by_unit,
    sign_flip_p,
    wider_interval,
)
from tools.compare.transcripts import System, TestSet

VOICES = {"yes": "known voices", "no": "new voices"}

Interval = tuple[float, float]
ValueChanges = dict[str, tuple[Any, Any]]  # A's value and B's, None where it has none


@dataclass(frozen=True)
class Score:
    """A revision's rates in percent, with the 95 % interval that evaluate gives its WER."""

    name: str
    commit: str
    wer: float
    wer_interval: ErrorInterval
    cer: float


@dataclass(frozen=True)
class Difference:
    """B's rate less A's, in points of percent, with 95 % intervals; by_speaker: None where there are not two.

    p: of the clips' differences with their signs flipped; significant: it is below 0.05.
    """

    points: float
    by_clip: Interval
    by_speaker: Interval | None
    p: float
    significant: bool


@dataclass(frozen=True)
class Group:
    """Clips of one length or speaker, and each revision's WER on them in percent."""

    name: str
    clips: int
    wer: list[float]


@dataclass(frozen=True)
class Sentence:
    """A clip that changed; edits: word errors of A and of B, heard: their texts, normalised as reference is."""

    clip: str
    speaker: str | None
    reference: str
    heard: tuple[str, str]
    edits: tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """B against A: better, worse and equal count clips by their word errors."""

    name: str
    wer: Difference
    cer: Difference
    better: int
    worse: int
    equal: int
    most_better: list[Sentence]
    most_worse: list[Sentence]
    params: ValueChanges
    data: ValueChanges
    code: ValueChanges


@dataclass(frozen=True)
class Result:
    """revisions: A first. comparisons: of every other with it. lengths, voices and speakers: empty where unknown."""

    clips: int
    words: int
    samples: int
    seed: int
    revisions: list[Score]
    comparisons: list[Comparison]
    lengths: list[Group]
    voices: list[Group]
    speakers: list[Group]

    def worse_than(self, points: float) -> list[str]:
        """Which revisions are significantly worse than A, and by more than so many points of WER: a phrase each."""
        base = self.revisions[0].name
        return [
            f"{other.name} is {other.wer.points:.2f} points of WER worse than {base} (p = {other.wer.p:.2g})"
            for other in self.comparisons
            if other.wer.significant and other.wer.points > points
        ]


def compare(systems: list[System], test: TestSet, samples: int, seed: int, sentences: int) -> Result:
    """Compare every other system with the first; sentences: how many of the most changed to keep, each way."""
    errors = [word_errors(test.references, system.hypotheses) for system in systems]
    words = np.array([clip_edits(error) for error in errors]).T  # (n_clips, n_systems), as characters
    characters = np.array([character_edits(test.references, system.hypotheses) for system in systems]).T
    sizes = np.array([errors[0]["words"], [len(reference) for reference in test.references]]).T
    values = np.concatenate([words, characters, sizes], axis=1)
    sums = resampled_by_unit(values, test.speakers or [], samples, seed)
    drawn = {by: rates(resampled) for by, resampled in sums.items()}
    (observed,) = rates(values.sum(axis=0, keepdims=True).astype(float))
    n = len(systems)
    scores = [
        Score(
            system.name,
            system.commit,
            float(observed[at]),
            wider_interval({by: again[:, at] for by, again in drawn.items()}),
            float(observed[n + at]),
        )
        for at, system in enumerate(systems)
    ]
    comparisons = []
    for at, system in enumerate(systems[1:], start=1):
        wer, cer = (difference(column, first, values, drawn) for column, first in ((at, 0), (n + at, n)))
        comparisons.append(comparison(systems[0], system, wer, cer, test, words[:, [0, at]], sentences))
    return Result(
        clips=len(test.clips),
        words=int(sizes[:, 0].sum()),
        samples=samples,
        seed=seed,
        revisions=scores,
        comparisons=comparisons,
        lengths=rates_by_group([f"{int(s):02}–{int(s) + 1:02} s" for s in test.seconds or []], words, sizes[:, 0]),
        voices=rates_by_group([VOICES.get(known, "unknown") for known in test.known or []], words, sizes[:, 0]),
        speakers=rates_by_group(test.speakers or [], words, sizes[:, 0]),
    )


def comparison(
    first: System, other: System, wer: Difference, cer: Difference, test: TestSet, edits: np.ndarray, sentences: int
) -> Comparison:
    """One system against the first; edits: (n_clips, 2), the words that each of the two has wrong."""
    change = edits[:, 1] - edits[:, 0]
    made, base = other.made_from, first.made_from
    better, worse = (most_changed(first, other, test, edits, sign, sentences) for sign in (-1, 1))
    return Comparison(
        name=other.name,
        wer=wer,
        cer=cer,
        better=int(np.sum(change < 0)),
        worse=int(np.sum(change > 0)),
        equal=int(np.sum(change == 0)),
        most_better=better,
        most_worse=worse,
        params=changes(base.params, made.params),
        data=changes(base.data, made.data),
        code=changes(base.code, made.code),
    )


def difference(column: int, base: int, values: np.ndarray, drawn: dict[str, np.ndarray]) -> Difference:
    """One column against another; values, in counts, are those of ``compare``; drawn: rates in percent, resampled."""
    (observed,) = rates(values.sum(axis=0, keepdims=True).astype(float))
    p = sign_flip_p(values[:, column] - values[:, base])
    found = {by: percentile_interval(again[:, column] - again[:, base]) for by, again in drawn.items()}
    points = float(observed[column] - observed[base])
    return Difference(points, found["clip"], found.get("speaker"), p, p < LEVEL)


def rates(sums: np.ndarray) -> np.ndarray:
    """Every system's WER, then every one's CER, in percent: (samples, 2 n_systems).

    sums: (samples, 2 n_systems + 2), of every system's word edits, of its character edits, of words, of characters.
    """
    n = sums.shape[1] // 2 - 1
    return 100 * sums[:, : 2 * n] / np.repeat(sums[:, 2 * n :], n, axis=1)


def character_edits(references: list[str], hypotheses: list[str]) -> np.ndarray:
    """Minimal character edits, (n_clips,) int, as jiwer's CER counts them."""
    output = jiwer.process_characters(references, hypotheses)
    return np.array(
        [
            sum(
                max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                for chunk in chunks
                if chunk.type != "equal"
            )
            for chunks in output.alignments
        ]
    )


def rates_by_group(keys: list[str], edits: np.ndarray, words: np.ndarray) -> list[Group]:
    """Every system's WER on each group of clips, by name; edits: (n_clips, n_systems) int, words: (n_clips,) int."""
    if not keys:
        return []
    names, counts = np.unique(np.array(keys), return_counts=True)
    sums = group_sums(np.column_stack([edits, words]), keys)
    wer = 100 * sums[:, :-1] / sums[:, -1:]
    return [Group(str(name), int(count), row.tolist()) for name, count, row in zip(names, counts, wer, strict=True)]


def most_changed(base: System, other: System, test: TestSet, edits: np.ndarray, sign: int, most: int) -> list[Sentence]:
    """The clips that changed most, better (sign -1) or worse (1); edits: (n_clips, 2) int, A's and B's."""
    change = sign * (edits[:, 1] - edits[:, 0])
    order = sorted(np.flatnonzero(change > 0), key=lambda at: (-change[at], test.clips[at]))
    return [
        Sentence(
            test.clips[at],
            test.speakers[at] if test.speakers else None,
            test.references[at],
            (base.hypotheses[at], other.hypotheses[at]),
            (int(edits[at, 0]), int(edits[at, 1])),
        )
        for at in order[:most]
    ]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> ValueChanges:
    """What differs between two mappings, by key."""
    keys = sorted(before.keys() | after.keys())
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}

"""Transcripts against references: word and character error rates, and how sure they are."""

from typing import Any

import datasets
import evaluate
import jiwer
import numpy as np

from stages.asr.text import normalise
from stages.runtime.errors import UserError

EDITS = ("substitutions", "deletions", "insertions")
EDIT_OF_JIWER = {"substitute": "substitutions", "delete": "deletions", "insert": "insertions"}


class WordErrors(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """jiwer's minimal word edits as a metric of Hugging Face's ``evaluate``, clip by clip.

    ``evaluate.load("wer")`` fetches a script at run time and gives one number; this needs no network, and what it
    gives can be resampled. compute(predictions, references) -> {"substitutions", "deletions", "insertions", "words":
    list[int], one a clip; "wer": their quotient; "confusions": list of (clip, reference word or "", heard word or "")}.
    References hold at least one word each.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="Word edits, Levenshtein 1966.", citation="", features=features)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        output = jiwer.process_words(references, predictions)
        counts = {name: [0] * len(references) for name in EDITS}
        confusions = []
        for clip, row in enumerate(output.alignments):
            for chunk in row:
                if chunk.type == "equal":
                    continue
                reference = output.references[clip][chunk.ref_start_idx : chunk.ref_end_idx]
                hypothesis = output.hypotheses[clip][chunk.hyp_start_idx : chunk.hyp_end_idx]
                edits = max(len(reference), len(hypothesis))
                counts[EDIT_OF_JIWER[chunk.type]][clip] += edits
                pairs = zip(reference or [""] * edits, hypothesis or [""] * edits, strict=True)
                confusions += [(clip, *pair) for pair in pairs]
        words = [len(reference) for reference in output.references]
        return {**counts, "words": words, "wer": output.wer, "confusions": confusions}


def word_errors(references: list[str], hypotheses: list[str]) -> dict[str, Any]:
    """What WordErrors.compute gives for texts as they stand."""
    errors: dict[str, Any] = WordErrors(keep_in_memory=True).compute(predictions=hypotheses, references=references)
    return errors


def wer(references: list[str], hypotheses: list[str]) -> float:
    """Word error rate in percent of normalised texts, over the clips whose reference has words.

    Raises UserError where none has.
    """
    pairs = [(r, h) for r, h in zip(map(normalise, references), map(normalise, hypotheses), strict=True) if r]
    if not pairs:
        raise UserError("no reference contains a word: check the texts of the corpus")
    errors = word_errors([reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs])
    return 100 * float(errors["wer"])


def bootstrap_interval(edits: np.ndarray, words: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    """The 95 % interval of the word error rate, in percent, from clips drawn again with replacement.

    edits, words: (n_clips,) int. Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR
    performance evaluation" (2004).
    """
    drawn = np.random.default_rng(seed).integers(len(words), size=(samples, len(words)))
    rates = edits[drawn].sum(axis=1) / words[drawn].sum(axis=1)
    low, high = np.percentile(100 * rates, [2.5, 97.5])
    return float(low), float(high)


def score(
    references: list[str], hypotheses: list[str], known: list[str], samples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scores of a test set, and the word errors behind them.

    References have words once they are normalised; known: each clip's ``known_speaker``. The scores are, in percent:
    wer (normalised), its 95 % interval wer_low and wer_high, wer_raw (texts as they stand), cer (normalised),
    wer_known_speakers and wer_new_speakers where there are such; and the counts substitutions, deletions, insertions,
    words, clips. The second value is what ``WordErrors`` says of the normalised texts.
    """
    normal_references, normal_hypotheses = ([normalise(text) for text in texts] for texts in (references, hypotheses))
    errors = word_errors(normal_references, normal_hypotheses)
    edits, words = clip_edits(errors), np.array(errors["words"])
    low, high = bootstrap_interval(edits, words, samples, seed)
    marks = np.array(known)
    groups = {"wer_known_speakers": marks == "yes", "wer_new_speakers": marks == "no"}
    rates = {
        "wer": 100 * errors["wer"],
        "wer_low": low,
        "wer_high": high,
        "wer_raw": 100 * word_errors(references, hypotheses)["wer"],
        "cer": 100 * jiwer.cer(normal_references, normal_hypotheses),
        **{name: 100 * edits[group].sum() / words[group].sum() for name, group in groups.items() if group.any()},
    }
    counts = {name: sum(errors[name]) for name in (*EDITS, "words")} | {"clips": len(references)}
    return {name: round(float(rate), 2) for name, rate in rates.items()} | counts, errors


def clip_edits(errors: dict[str, Any]) -> np.ndarray:
    """Edits of every kind, (n_clips,) int, of what ``WordErrors`` gave."""
    edits: np.ndarray = np.sum([errors[name] for name in EDITS], axis=0)
    return edits

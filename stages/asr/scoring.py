"""Transcripts against references: word and character error rates."""

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


def score(references: list[str], hypotheses: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scores of a test set, and the word errors behind them.

    References have words once they are normalised. The scores are, in percent: wer (normalised), wer_raw (texts as they
    stand), cer (normalised); and the counts substitutions, deletions, insertions, words, clips. The second value is
    what ``normal_errors`` gives.
    """
    errors = normal_errors(references, hypotheses)
    said, heard = ([normalise(text, apart=False) for text in texts] for texts in (references, hypotheses))
    rates = {
        "wer": 100 * errors["wer"],
        "wer_raw": 100 * word_errors(references, hypotheses)["wer"],
        "cer": 100 * jiwer.cer(said, heard),
    }
    counts = {name: sum(errors[name]) for name in (*EDITS, "words")} | {"clips": len(references)}
    return {name: round(float(rate), 2) for name, rate in rates.items()} | counts, errors


def normal_errors(references: list[str], hypotheses: list[str]) -> dict[str, Any]:
    """What ``WordErrors`` says of texts once they are normalised."""
    return word_errors([normalise(text) for text in references], [normalise(text) for text in hypotheses])


def clip_edits(errors: dict[str, Any]) -> np.ndarray:
    """Edits of every kind, (n_clips,) int, of what ``WordErrors`` gave."""
    edits: np.ndarray = np.sum([errors[name] for name in EDITS], axis=0)
    return edits

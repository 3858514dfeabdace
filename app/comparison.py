"""Two transcripts of the same audio side by side, and where they differ."""

import re
from itertools import groupby

import jiwer

from stages.asr.text import BRACKETS, UNSPACED, normalise

DIFFERS = "differs"
WORD = re.compile(rf"{UNSPACED.pattern}\s*|(?:(?!{UNSPACED.pattern})\S)+\s*|\s+")

Pieces = list[tuple[str, str | None]]


def mark_differences(left: str, right: str) -> tuple[Pieces, Pieces]:
    """Both texts in pieces: (piece, None) where their normalised words agree, (piece, "differs") where not.

    The pieces of a text, joined, are that text. What differs is what the word error rate counts: the fewest edits.
    """
    pieces = [split_words(left), split_words(right)]
    ours, theirs = (
        [(word, place) for place, piece in enumerate(side) for word in normalise(piece).split()] for side in pieces
    )
    reference, hypothesis = (" ".join(word for word, _ in words) for words in (ours, theirs))
    output = jiwer.process_words(reference, hypothesis)
    edits = [chunk for chunk in output.alignments[0] if chunk.type != "equal"]
    return (
        merge_pieces(pieces[0], {place for edit in edits for _, place in ours[edit.ref_start_idx : edit.ref_end_idx]}),
        merge_pieces(
            pieces[1], {place for edit in edits for _, place in theirs[edit.hyp_start_idx : edit.hyp_end_idx]}
        ),
    )


def split_words(text: str) -> list[str]:
    """A text in words, each with the space behind it; what stands in brackets stays together."""
    shape = text
    for group in BRACKETS:
        shape = group.sub(lambda match: "x" * len(match[0]), shape)
    return [text[slice(*piece.span())] for piece in WORD.finditer(shape)]


def merge_pieces(pieces: list[str], marked: set[int]) -> Pieces:
    """Pieces with their marks; those with the same mark that stand beside each other become one."""
    runs = groupby(enumerate(pieces), key=lambda numbered: numbered[0] in marked)
    return [("".join(piece for _, piece in run), DIFFERS if differs else None) for differs, run in runs]

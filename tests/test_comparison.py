"""Two transcripts side by side."""

import random
from itertools import pairwise

import jiwer
import pytest

from app.comparison import DIFFERS, mark_differences
from stages.asr.text import normalise

WORDS = [
    "en",
    "två,",
    "Tre",
    "e-post",
    "–",
    "å!",
    "Å",
    "a\u030a",
    "\n\t",
    "[musik]",
    "(hostar",
    "till)",
    "<b>",
    "[två",
    "ord]",
]
WORDS += ["(", ")", "[", "]", "([x])", "it's", "5,5", "%", "..."]


def differing(pieces: list[tuple[str, str | None]]) -> list[str]:
    return [piece for piece, label in pieces if label]


def test_what_differs_is_marked():
    left, right = mark_differences("Hej på dig, du.", "Hej på er, du gamle.")
    assert left == [("Hej på ", None), ("dig, ", DIFFERS), ("du.", None)]
    assert right == [("Hej på ", None), ("er, ", DIFFERS), ("du ", None), ("gamle.", DIFFERS)]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Hej, på DIG!", "hej på dig"),
        ("Skicka e-post.", "skicka e post"),
        ("Hej [musik spelas] på dig", "hej på dig"),
        ("(skratt) hej", "hej"),
        ("", ""),
        ("...", "–"),
        ("å", "a\u030a"),
    ],
)
def test_what_normalising_drops_is_no_difference(left, right):
    assert not [piece for side in mark_differences(left, right) for piece in differing(side)]


def test_a_script_without_spaces_is_marked_letter_by_letter():
    left, right = mark_differences("今日はいい天気。", "今日は悪い天気")
    assert left == [("今日は", None), ("い", DIFFERS), ("い天気。", None)]
    assert right == [("今日は", None), ("悪", DIFFERS), ("い天気", None)]


def test_one_side_may_be_empty():
    assert mark_differences("", "Hej på dig") == ([], [("Hej på dig", DIFFERS)])
    assert mark_differences("Hej på dig", " ") == ([("Hej på dig", DIFFERS)], [(" ", None)])


@pytest.mark.parametrize("seed", range(300))
def test_pieces_give_back_the_texts_and_mark_what_the_error_rate_counts(seed):
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(12))) + draw.choice(["", " ", "\n"]) for _ in range(2)]
    sides = mark_differences(*texts)
    assert ["".join(piece for piece, _ in side) for side in sides] == texts
    for side in sides:
        assert all(first[1] != second[1] for first, second in pairwise(side))
    edits = jiwer.process_words(*map(normalise, texts))
    assert bool(edits.substitutions + edits.deletions) == bool(differing(sides[0]))
    assert bool(edits.substitutions + edits.insertions) == bool(differing(sides[1]))


def test_hours_of_speech():
    draw = random.Random(1)
    left = draw.choices([f"ord{number}" for number in range(3000)], k=40_000)
    right = [word if draw.random() > 0.1 else "annat" for word in left]
    changed = sum(ours != theirs for ours, theirs in zip(left, right, strict=True))
    assert (
        sum(len(piece.split()) for piece in differing(mark_differences(" ".join(left), " ".join(right))[1])) == changed
    )

import random
import socket

import pytest

from stages.asr.scoring import EDITS, clip_edits, score, wer, word_errors
from stages.asr.text import normalise

WORDS = ["hej", "då", "åsa", "ägg", "ön", "är", "var", "en", "två", "tre"]


def distance(reference: list[str], heard: list[str]) -> int:
    """Levenshtein's distance by the book."""
    row = list(range(len(heard) + 1))
    for i, said in enumerate(reference, start=1):
        left, row[0] = row[0], i
        for j, word in enumerate(heard, start=1):
            left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, left + (said != word))
    return row[-1]


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    """Four hundred references with at least a word, and what was heard, which may be nothing."""
    rng = random.Random(1)

    def sentence(least: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, 9)))

    pairs = []
    for _ in range(400):
        said = sentence(1)
        kept = [word if rng.random() < 0.7 else rng.choice(WORDS) for word in said.split() if rng.random() < 0.9]
        pairs.append((said, sentence(0) if rng.random() < 0.3 else " ".join(kept)))
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert "" in hypotheses
    return references, hypotheses


@pytest.fixture
def no_network(monkeypatch):
    """Whoever reaches for another machine fails."""

    def refuse(*arguments):
        raise AssertionError(f"reached for the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_edits_and_words_are_levenshteins(texts, no_network):
    references, hypotheses = texts
    errors = word_errors(references, hypotheses)
    expected = [distance(said.split(), heard.split()) for said, heard in zip(references, hypotheses, strict=True)]
    words = [len(said.split()) for said in references]
    assert clip_edits(errors).tolist() == expected
    assert errors["words"] == words
    assert errors["wer"] == pytest.approx(sum(expected) / sum(words))


def test_kinds_of_edits_account_for_every_word(texts):
    references, hypotheses = texts
    errors = word_errors(references, hypotheses)
    for clip, (said, heard) in enumerate(zip(references, hypotheses, strict=True)):
        kept = len(said.split()) - errors["substitutions"][clip] - errors["deletions"][clip]
        assert len(heard.split()) == kept + errors["substitutions"][clip] + errors["insertions"][clip]
    assert len(errors["confusions"]) == clip_edits(errors).sum()


def test_every_word_that_was_misheard_is_told():
    errors = word_errors(["det är en ö", "kom hit nu", "hej"], ["det var en", "kom hit då nu", "hej"])
    assert sorted(errors["confusions"]) == [(0, "är", "var"), (0, "ö", ""), (1, "", "då")]
    assert [errors[name] for name in EDITS] == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_scores_of_a_test_set(texts, no_network):
    references, hypotheses = texts
    scores, errors = score(references, hypotheses)
    assert scores["substitutions"] + scores["deletions"] + scores["insertions"] == clip_edits(errors).sum()
    edits = clip_edits(errors).sum()
    assert scores["wer"] == pytest.approx(100 * edits / scores["words"], abs=0.005)
    assert scores["clips"] == 400


def test_identical_texts_score_nothing(no_network):
    texts = ["Åsa är på ön.", "Hej!"]
    scores, _ = score(texts, texts)
    for name in ("wer", "wer_raw", "cer", *EDITS):
        assert scores[name] == 0, name
    assert wer(texts, texts) == 0


def test_case_and_signs_count_in_the_raw_rate_alone():
    scores, _ = score(["Åsa, är du på ön?"], ["åsa är du på ön"])
    assert (scores["wer"], scores["cer"]) == (0, 0)
    assert scores["wer_raw"] == 40


def test_a_lost_ring_is_an_error():
    scores, _ = score(["får en ö"], ["far en o"])
    assert scores["wer"] == pytest.approx(66.67)
    assert scores["cer"] == pytest.approx(25)


def test_vowels_that_are_marks_are_errors_too():
    scores, _ = score(["यह किताब मेरी है"], ["यह कौताबे मोरु है"])
    assert (scores["wer"], scores["words"], scores["substitutions"]) == (50.0, 4, 2)


def test_a_script_without_spaces_is_scored_letter_by_letter():
    scores, _ = score(["今日はいい天気。"], ["今日は悪い天気"])
    assert (scores["wer"], scores["cer"], scores["words"]) == (14.29, 14.29, 7)


def test_clips_without_words_do_not_count_in_wer():
    assert wer(["hej du", "…"], ["hej", "mycket prat"]) == 50


def test_texts_of_the_scores_are_normalised(texts):
    assert all(normalise(text) == text for part in texts for text in part)

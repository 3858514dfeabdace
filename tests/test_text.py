import unicodedata

import pytest

from stages.asr.text import normalise


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Åsa är på ön.", "åsa är på ön"),
        ("ÅÄÖ åäö", "åäö åäö"),
        (unicodedata.normalize("NFD", "Är Örjan från Åre?"), "är örjan från åre"),
        ("  två   ord,\n«ett» – till! ", "två ord ett till"),
        ("[musik] hej (skrattar) <unk>", "hej"),
        ("klockan 12:30", "klockan 12 30"),
        ("…!?", ""),
    ],
)
def test_only_case_signs_and_brackets_go(text, normal):
    assert normalise(text) == normal


def test_normalising_twice_changes_nothing():
    text = "Å, är «det» [ljud] ÖN?"
    assert normalise(normalise(text)) == normalise(text)


def test_letters_of_swedish_stay_apart():
    assert len({normalise(word) for word in ("far", "får", "för", "fär")}) == 4

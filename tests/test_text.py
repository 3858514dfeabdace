import unicodedata

import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

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
        ("यह किताब मेरी है।", "यह किताब मेरी है"),
        ("مُحَمَّدٌ، هنا", "مُحَمَّدٌ هنا"),
        ("İstanbul'da", "istanbul da"),
        ("Straße №\u00a05", "straße no 5"),
        ("❤️ ja \u200d\u200f", "ja"),
    ],
)
def test_only_case_signs_and_brackets_go(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("東京で、iPhoneを2台。", "東 京 で iphone を 2 台"),
        ("ที่นี่ดี", "ที่ นี่ ดี"),
        ("ខ្មែរ", "ខ្ មែ រ"),
        ("한국어 말", "한국어 말"),
    ],
)
def test_letters_of_a_script_without_spaces_are_words_with_their_marks(text, normal):
    assert normalise(text) == normalise(normalise(text)) == normal
    assert normalise(text, apart=False).replace(" ", "") == normal.replace(" ", "")
    assert len(normalise(text, apart=False).split()) <= 2


def test_texts_in_european_letters_are_as_whispers_own_normalisation_has_them():
    text = "Hôtel «Ž» œuvre [x] Ελλάδα, ПРИВЕТ: it’s 3½ km² – 50 % (ja) Łódź ñ ǅ ﬁn_a <b>c</b> A\u0301"
    assert normalise(text) == BasicTextNormalizer()(text).strip()


def test_normalising_twice_changes_nothing():
    text = "Å, är «det» [ljud] ÖN?"
    assert normalise(normalise(text)) == normalise(text)


def test_letters_of_swedish_stay_apart():
    assert len({normalise(word) for word in ("far", "får", "för", "fär")}) == 4

"""What labels teach of a text: its style, and nothing that the model may never say."""

from collections import Counter

import pytest

from stages.asr.batches import ClipDataset
from stages.asr.labels import LabelStyle, LabelWriter
from stages.asr.model import SpeechModel
from stages.asr.shards import Shards
from stages.asr.text import normalise
from stages.params import load_params
from stages.pretrained import pretrained
from tests.support.material import TEXTS, TINY, speech, write_params, write_shards

ALONE = '"#()*+/:;<=>@[\\]^_`{|}~'  # signs that Whisper may not say, with a space before them or not
LONGER = ("--", " --", "---", "((", "))", " -", " '", "♪", " ♪", "♪♪", " ♪♪")
SAID = (
    '"Good-bye," said the boy.',
    'Hon sa "ja".',
    'Klockan är "12:30".',
    "Stockholm - Malmö; och/eller Ystad",
    "sa '-nej' (och gick).",
    "ljud ♪ och ♥ -- ♪♪",
    "#1 @ hemma",
)


@pytest.fixture
def whispers(tmp_path) -> SpeechModel:
    """A model whose byte pairs hold signs alone and within longer tokens, as OpenAI's do, and what it may not say."""
    texts = (*TEXTS, *SAID, '".')
    shards = write_shards(tmp_path / "train", {f"{at:02}": speech(0.2) for at in range(3 * len(texts))}, texts=texts)
    params = load_params(write_params(tmp_path / "params.yaml", TINY | {"whisper.scratch.merges": 300}))
    model = pretrained(params.whisper, shards, tmp_path / "model")
    encoded = [model.tokenizer(shape, add_special_tokens=False).input_ids for shape in spellings()]
    model.whisper.generation_config.suppress_tokens = sorted({ids[0] for ids in encoded if len(ids) == 1})
    return model


def spellings() -> list[str]:
    return [*ALONE, *(f" {sign}" for sign in ALONE), *LONGER]


def tokens(model: SpeechModel, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("style", "text", "taught"),
    [
        (LabelStyle(), ' "Åsa", sa  hon. ', '"Åsa", sa hon.'),
        (LabelStyle(quotation_marks="remove"), "«Åsa», sa ”hon” och ‹gick›: ”12”", "Åsa, sa hon och gick: 12"),
        (LabelStyle(quotation_marks="remove"), "rock'n'roll, it’s", "rock'n'roll, it’s"),
        (LabelStyle(quotation_marks="remove"), 'ett"två', "ett två"),
        (LabelStyle(quotation_marks="remove"), 'की"का', "की का"),
        (LabelStyle(quotation_marks="remove"), "彼は「はい」と言った。", "彼ははいと言った。"),
        (LabelStyle(quotation_marks="remove"), "เขาพูดว่า“ครับ”แล้ว", "เขาพูดว่าครับแล้ว"),
        (LabelStyle(final_full_stop="remove"), "جی ہاں۔", "جی ہاں"),
        (LabelStyle(case="lower"), "İstanbul'da.", "istanbul'da."),
        (LabelStyle(case="lower"), "ÅSA Och Örjan.", "åsa och örjan."),
        (LabelStyle(final_full_stop="remove"), "Ja. Nej.", "Ja. Nej"),
        (LabelStyle(final_full_stop="remove"), 'Hon sa "ja."', 'Hon sa "ja"'),
        (LabelStyle(final_full_stop="remove"), "Ja...", "Ja..."),
        (LabelStyle(final_full_stop="remove"), "Ja?", "Ja?"),
        (LabelStyle("remove", "lower", "remove"), '"Hej."', "hej"),
    ],
)
def test_a_style_changes_what_it_names_alone(model, style, text, taught):
    assert LabelWriter(model, style).write(text) == taught


@pytest.mark.parametrize("text", TEXTS)
def test_texts_without_signs_stay_as_they_are(model, whispers, text):
    for known in (model, whispers):
        assert LabelWriter(known, LabelStyle(quotation_marks="remove")).write(text) == text


def test_what_a_model_may_never_say_is_not_taught(whispers):
    never = set(whispers.whisper.generation_config.suppress_tokens)
    assert [text for text in SAID if never & set(tokens(whispers, text))] == list(SAID)  # else this tests nothing
    assert len(tokens(whispers, '".')) == 1  # a longer token, which may be said
    writer = LabelWriter(whispers, LabelStyle())
    for text in SAID:
        taught = writer.write(text)
        assert not never & set(tokens(whispers, taught)), text
        assert '"' not in taught
        assert normalise(taught).split() == normalise(text.replace("(", "").replace(")", "")).split()
    assert writer.write('Hon sa "ja".') == "Hon sa ja."
    assert writer.write("ja - nej, 12:30") == "ja nej, 12 30"
    assert (writer.write("-nej"), writer.write("-nej", before=" ")) == ("-nej", " nej")
    assert "♥" in writer.write(SAID[5])  # whose first bytes are those of a note


def test_labels_are_taught_in_style_and_references_stay(tmp_path, whispers):
    texts = ('Hon sa "Ja".', '"', "Nej")
    folder = write_shards(tmp_path / "taught", {name: speech(0.5) for name in "abc"}, texts=texts)
    shards = Shards(folder)
    clips = ClipDataset(shards, whispers, 448, style=LabelStyle(case="lower"))
    said = [whispers.tokenizer.decode(labels, skip_special_tokens=True) for labels in clips.labels]
    assert said == ["hon sa ja.", "nej"]
    assert Counter(clips.dropped.values()) == {"label empty": 1} and "b" in clips.dropped
    assert [entry.text for entry in shards.entries] == list(texts)

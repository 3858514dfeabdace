import unicodedata

import pytest

from stages.asr.clips import Clip, clean_text, read_clips, write_clips
from stages.runtime.errors import UserError

HEADER = "id\taudio\ttext\tspeaker\tknown_speaker\n"


def test_clips_come_back_as_they_were_sorted_by_id(tmp_path):
    clips = [
        Clip("b", "b.wav", 'han sa "hej', "anna", "yes"),
        Clip("a", "a.mp3", '"åäö" "" \'', "björn"),
        Clip("c", "c.wav", '"', "örjan, den äldre", "no"),
    ]
    write_clips(tmp_path, clips)
    assert read_clips(tmp_path) == sorted(clips, key=lambda clip: clip.id)
    assert [path.name for path in tmp_path.iterdir()] == ["clips.tsv"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (unicodedata.normalize("NFD", "Åsa älskar kött"), "Åsa älskar kött"),
        ("  två\tord\r\n  och\u2028fler\xa0nu ", "två ord och fler nu"),
        ("", ""),
    ],
)
def test_clean_text_is_composed_and_on_one_line(text, clean):
    assert clean_text(text) == clean


@pytest.mark.parametrize("text", ["rad\u2028två", "a\x0bb\x0cc\x1cd\x85e", "a\rb\nc\td"])
def test_no_sign_of_a_cleaned_text_breaks_the_table(tmp_path, text):
    clips = [Clip("a", "a.wav", clean_text(text), "x"), Clip("b", "b.wav", "hej", "y")]
    write_clips(tmp_path, clips)
    assert read_clips(tmp_path) == clips


def test_a_missing_list_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'clips.tsv'} is missing: run the download stage"):
        read_clips(tmp_path)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("id\taudio\ttext\tspeaker\na\ta.wav\thej\tanna\n", 2),
        (HEADER + "a\ta.wav\thej\tanna\tyes\nb\tb.wav\thej\tanna\n", 3),
        (HEADER + "a\ta.wav\thej\tdå\tanna\tyes\n", 2),
        (HEADER.replace("text", "sentence") + "a\ta.wav\thej\tanna\tyes\n", 2),
    ],
)
def test_wrong_columns_are_named_with_their_line(tmp_path, table, line):
    (tmp_path / "clips.tsv").write_text(table, encoding="utf-8")
    with pytest.raises(UserError, match=rf"clips.tsv line {line}: expected id, audio, text, speaker, known_speaker"):
        read_clips(tmp_path)

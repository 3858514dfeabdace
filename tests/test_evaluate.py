"""A model against the test shards: the scores, and the tables beside them."""

import json

import pytest

from stages.evaluate import Results, evaluate
from stages.params import load_params
from stages.runtime.errors import UserError
from tests.support.material import sounds, write_params, write_shards


@pytest.fixture
def evaluated(tmp_path, tiny):
    """Call with the texts of the test clips: evaluates the tiny model; returns the scores and the folder."""

    def call(*texts: str):
        test = write_shards(tmp_path / "test", sounds(), texts=texts)
        params = write_params(tmp_path / "params.yaml", {"evaluate.bootstrap_samples": 100})
        places = ("texts/tiny.tsv", "tables", "metrics/tiny.json", "details/tiny.json")
        values = load_params(params)
        results = Results(*(tmp_path / place for place in places))
        return evaluate(values.evaluate, values.compute, tiny, test, results), tmp_path

    return call


def rows(path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def test_scores_transcripts_and_tables_agree(evaluated):
    scores, folder = evaluated("hej på dig", "åsa köper ägg")
    compared, details = (json.loads((folder / f"{name}/tiny.json").read_text()) for name in ("metrics", "details"))
    assert list(compared) == ["wer", "wer_low", "wer_high", "cer", "untrained"]
    assert scores == compared | details and not compared.keys() & details.keys()
    assert scores["clips"] == 12 and scores["words"] == 36 and scores["dropped"] == {}
    edits = scores["substitutions"] + scores["deletions"] + scores["insertions"]
    assert scores["wer"] == pytest.approx(100 * edits / 36, abs=0.01)
    assert scores["wer_low"] <= scores["wer"] <= scores["wer_high"]
    assert scores["untrained"] is True
    header, *texts = rows(folder / "texts/tiny.tsv")
    assert header == ["clip", "reference", "hypothesis", "wer"] and len(texts) == 12
    assert [row[1] for row in texts[:2]] == ["hej på dig", "åsa köper ägg"]
    assert rows(folder / "tables/wer.tsv")[1][1] == str(scores["wer"])
    assert sum(int(row[3]) for row in rows(folder / "tables/lengths.tsv")[1:]) == 12
    assert rows(folder / "tables/speakers.tsv")[1][:2] == ["model", "voice (known)"]


def test_a_text_without_words_is_not_scored_but_counted(evaluated):
    scores, _ = evaluated("hej", "(…)")
    assert scores["clips"] == 6 and scores["dropped"] == {"no words": 6}


def test_no_words_at_all_is_an_error(evaluated):
    with pytest.raises(UserError, match="holds a word"):
        evaluated("...")

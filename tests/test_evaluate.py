"""A model against the test shards: the scores, and the tables beside them; on the full window, and under conditions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soxr
import torch

from stages.asr.decoding import prompt_tokens, token_limit
from stages.asr.mel import HOP_LENGTH, LOG_MEL_RANGE, SAMPLE_RATE, log_mel, pad_or_trim
from stages.asr.model import load_model, save_model
from stages.asr.probes import Probe, write_probes
from stages.asr.shards import unpack_mel
from stages.evaluate import Recogniser, Results, condition_changes, evaluate, short_names
from stages.params import load_params
from stages.runtime.errors import UserError
from tests.support.material import pack, sounds, speech, write_params, write_shards

HALF_STEP = 1.01 * LOG_MEL_RANGE / 255 / 2  # of the stored mels' 8 bits, with float32's rounding
DECIBELS = 40  # of one unit of scaled log-mel
BEYOND = {"wer_full_window", "wer_stressed"}


@pytest.fixture
def evaluated(tmp_path, tiny):
    """Call with texts of the test clips, and params: evaluates a tiny model; returns the scores and the folder."""

    def call(*texts: str, model=tiny, probes=None, **settings: object):
        test = write_shards(tmp_path / "test", sounds(), texts=texts)
        values = {f"evaluate.{name.replace('__', '.')}": value for name, value in settings.items()}
        params = write_params(tmp_path / "params.yaml", {"evaluate.bootstrap_samples": 100} | values)
        places = ("texts/tiny.tsv", "tables", "metrics/tiny.json", "details/tiny.json")
        values = load_params(params)
        results = Results(*(tmp_path / place for place in places))
        return evaluate(values.evaluate, values.compute, model, test, results, probes), tmp_path

    return call


@pytest.fixture
def trained(talking, tmp_path):
    """The folder of a model that counts as trained, and says little."""
    talking.untrained = False
    talking.whisper.generation_config.max_length = 24
    save_model(talking, tmp_path / "model")
    return tmp_path / "model"


def rows(path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def test_scores_transcripts_and_tables_agree(evaluated):
    scores, folder = evaluated("hej på dig", "åsa köper ägg")
    compared, details = (json.loads((folder / f"{name}/tiny.json").read_text()) for name in ("metrics", "details"))
    assert list(compared) == ["wer", "wer_low", "wer_high", "cer", "untrained"]
    assert rows(folder / "tables/conditions.tsv") == [["model", "condition", "wer", "low", "high", "clips"]]
    assert (scores["wer_known_speakers"], scores["known_speakers"], scores["wer_by"]) == (scores["wer"], 1, "clip")
    assert "wer_new_speakers" not in scores
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


def test_speakers_are_told_apart_by_as_many_letters_as_that_takes():
    assert short_names({"anna", "bo"}) == {"anna": "anna", "bo": "bo"}
    names = {"participant-01", "participant-02", "a" * 128}
    assert short_names(names) == {name: name[:14] for name in names}


def test_probes_are_scored_in_their_language_beside_the_test(tmp_path, evaluated, trained):
    probes = tmp_path / "probes"
    for name in ("english", "own"):
        write_shards(probes / name, dict(list(sounds().items())[:3]), texts=("good morning", "…"))
    write_probes(probes, [Probe("own", ""), Probe("english", "en")])
    few = {"full_window_clips": 0, "conditions__clips": 0}
    alone, folder = evaluated("hej", model=trained, **few)
    transcripts = (folder / "texts/tiny.tsv").read_bytes()
    scores, _ = evaluated("hej", model=trained, probes=probes, **few)
    assert {key: value for key, value in scores.items() if "probe" not in key} == alone
    assert (folder / "texts/tiny.tsv").read_bytes() == transcripts
    compared, details = (json.loads((folder / f"{name}/tiny.json").read_text()) for name in ("metrics", "details"))
    assert list(compared["probes"]) == ["english", "own"]
    assert compared["probes"]["english"].keys() == {"wer", "wer_low", "wer_high", "cer"}
    assert details["probe_details"]["own"]["clips"] == 2 and details["probe_details"]["own"]["dropped"] == {
        "no words": 1
    }
    assert [row[1] for row in rows(folder / "tables/probes.tsv")] == ["probe", "english", "own"]
    assert compared["probes"]["english"] != compared["probes"]["own"]  # the same clips: what differs is the prompt


def test_a_language_that_the_model_does_not_know_is_named(tmp_path, evaluated):
    write_shards(tmp_path / "probes/odd", sounds(), texts=("hej",))
    write_probes(tmp_path / "probes", [Probe("odd", "xx")])
    with pytest.raises(UserError, match=r"download\.probes\.odd\.language: the model does not know 'xx'"):
        evaluated("hej", probes=tmp_path / "probes")


def test_a_text_without_words_is_not_scored_but_counted(evaluated):
    scores, _ = evaluated("hej", "(…)")
    assert scores["clips"] == 6 and scores["dropped"] == {"no words": 6}


def test_no_words_at_all_is_an_error(evaluated):
    with pytest.raises(UserError, match="holds a word"):
        evaluated("...")


# Beyond the clips as they are


def test_a_trained_model_is_measured_on_the_full_window_and_under_conditions(evaluated, trained):
    scores, folder = evaluated("hej på dig", model=trained, full_window_clips=7)
    compared = json.loads((folder / "metrics/tiny.json").read_text())
    assert list(compared) == ["wer", "wer_low", "wer_high", "wer_full_window", "wer_stressed", "cer"]
    assert scores["wer_full_window_low"] <= scores["wer_full_window"] <= scores["wer_full_window_high"]
    assert scores["full_window_clips"] == 7
    _, *table = rows(folder / "tables/conditions.tsv")
    names = "clean lead_50_ms lead_400_ms cut_20_ms gain_-20_dB gain_+9.5_dB noise_at_20_dB noise_at_10_dB"
    assert [row[1].replace(" ", "_") for row in table] == [*names.split(), "speed_0.9", "speed_1.1"]
    fitting = [name for name, samples in sounds().items() if len(samples) <= 1.6 * SAMPLE_RATE]  # of 2 s, with 0.4 s
    assert {row[5] for row in table} == {str(len(fitting))} == {str(scores["condition_clips"])}
    assert scores["wer_stressed"] == pytest.approx(np.mean([float(row[2]) for row in table[1:]]), abs=0.01)
    own = [float(row[3]) for row in rows(folder / "texts/tiny.tsv") if row[0] in fitting]
    assert float(table[0][2]) == pytest.approx(np.mean(own), abs=0.05)  # of three words each, to a tenth
    assert scores["conditions"] == len({row[1] for row in table[1:]}) == 9


def test_a_device_with_half_precision_decodes_in_it(evaluated, trained, monkeypatch):
    """In a GPU's place the processor, in bfloat16."""
    monkeypatch.setattr("stages.asr.device.half_precision", lambda device: torch.bfloat16)
    seen = set()

    def load(*arguments):
        speech = load_model(*arguments)
        for part in (speech.whisper.model.encoder, speech.whisper.model.decoder):
            part.layers[0].fc1.register_forward_hook(lambda module, _, output: seen.add((module, output.dtype)))
        return speech

    monkeypatch.setattr("stages.evaluate.load_model", load)
    evaluated("hej på dig", model=trained)
    assert len(seen) == 2 and {dtype for _, dtype in seen} == {torch.bfloat16}


def test_what_is_not_asked_for_is_not_measured(evaluated, trained):
    scores, folder = evaluated("hej", model=trained, full_window_clips=0, conditions__clips=0)
    assert not BEYOND & scores.keys()
    assert len(rows(folder / "tables/conditions.tsv")) == 1


def test_conditions_that_no_clip_has_room_for_are_told(evaluated, trained, capfd):
    scores, _ = evaluated("hej", model=trained, conditions__lead_seconds=[2])
    assert BEYOND & scores.keys() == {"wer_full_window"}
    assert "no test clip leaves room" in capfd.readouterr().err


def test_on_the_full_window_a_text_is_what_generate_gives(talking, shards):
    """As in ``pipeline()``: however short the clip, its text may be as long as max_length lets it."""
    talking.whisper.double()  # where batches of another shape round otherwise, no two tokens are that close
    talking.context, config = "clip", talking.whisper.generation_config
    config.max_length = 60
    ours = Recogniser(talking, shards.entries, shards.mel, 5, "tiny").decode_full_windows(range(len(shards)))
    mels = torch.stack([torch.from_numpy(pad_or_trim(shards.mel(at), talking.window)) for at in range(len(shards))])
    most = config.max_length - len(prompt_tokens(talking))
    rows = talking.whisper.generate(input_features=mels.double(), max_new_tokens=most, num_beams=1, do_sample=False)
    texts = talking.tokenizer.batch_decode(rows, skip_special_tokens=True)
    assert ours == [" ".join(text.split()) for text in texts]
    assert len(set(ours)) > 6
    limits = [token_limit(entry.n_frames) for entry in shards.entries]
    said = [sum(token not in talking.tokenizer.all_special_ids for token in row) for row in rows.tolist()]
    assert any(n > limit for n, limit in zip(said, limits, strict=True))


# Each condition against the same change made to the waveform


@pytest.fixture(params=[1, 2, 3])
def recorded(request):
    """A clip's samples, and its features as they are stored."""
    samples = speech(1.6, seed=request.param).astype(np.float64)
    entry, data = pack("a", samples, "hej")
    return samples, unpack_mel(data, entry, "uint8", 80)


@pytest.fixture(scope="module")
def conditions(tmp_path_factory):
    params = write_params(tmp_path_factory.mktemp("params") / "params.yaml", {})
    return condition_changes(load_params(params).evaluate.conditions)


def test_leads_cuts_and_gains_are_those_of_the_waveform(recorded, conditions):
    """To the stored precision, but for the two frames whose window reaches beyond where the clip begins."""
    samples, mel = recorded
    for name, change in conditions.items():
        if name.startswith(("lead", "cut", "gain")):
            moved = np.pad(samples, (change.lead * HOP_LENGTH, 0))[change.cut_start * HOP_LENGTH :]
            expected = log_mel(moved * 10 ** (change.gain / 20), 80)
            found = change.apply(mel)
            assert found.shape == expected.shape == (80, change.length(mel.shape[1])), name
            differences = np.abs(found - expected)
            edge = change.lead + 2
            assert differences[:, edge:].max() < HALF_STEP, name
            assert change.lead < 2 or differences[:, : change.lead - 1].max() < HALF_STEP, name


def test_noise_is_as_loud_as_in_the_waveform(recorded, conditions):
    """Each bin's mean power over the clip, where the sounds' phases cancel out.

    The product of the two is at most as large as their sum, of no sign; in about 65 windows that do not overlap it
    comes to 1 / sqrt(65), 0.5 dB, of which four are allowed in one bin, and a tenth of that in the mean of 80.
    """
    samples, mel = recorded
    noise = np.random.default_rng(5).standard_normal(mel.shape[1] * HOP_LENGTH)
    heard, noise = log_mel(noise, 80)[:, : mel.shape[1]].astype(np.float32), noise[: len(samples)]
    for name, change in conditions.items():
        if change.noisy:
            level = np.sqrt(np.mean(samples**2) / np.mean(noise**2) * 10 ** (-change.snr / 10))
            found, expected = change.apply(mel, heard), log_mel(samples + level * noise, 80)
            decibels = 10 * np.log10(np.mean(10 ** (4 * found), axis=1) / np.mean(10 ** (4 * expected), axis=1))
            assert np.abs(decibels).max() < 2, name
            assert abs(decibels.mean()) < 0.5, name


def test_speed_is_as_resampled_sound(recorded, conditions):
    """Nearer to it, by far, than where the frames alone are resampled."""
    samples, mel = recorded
    for name, change in conditions.items():
        if change.speed != 1:
            rate = round(SAMPLE_RATE / change.speed)
            expected = log_mel(soxr.resample(samples, SAMPLE_RATE, rate, quality="VHQ"), 80)
            found, tempo = change.apply(mel), replace(change, speed=1.0, tempo=change.speed).apply(mel)
            assert found.shape == expected.shape, name
            moved, kept = (DECIBELS * np.sqrt(np.mean((each - expected) ** 2)) for each in (found, tempo))
            assert moved < 0.65 * kept, name
            assert moved < 5, name

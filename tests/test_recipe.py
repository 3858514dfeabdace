"""Recipes: what they put into params.yaml, what they leave alone, and that each one runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.asr.clips import SPLITS
from stages.asr.model import folder_digest
from stages.corpora import folder
from stages.download import download
from stages.evaluate import Results, evaluate
from stages.featurize import featurize
from stages.params import TrainSource, load_params
from stages.params_file import flatten
from stages.pretrained import pretrained
from stages.runtime.errors import UserError
from stages.train import Paths, train
from tests.support.hub import DATE, serve
from tests.support.material import ROOT
from tests.support.process import call
from tests.support.release import plain, row
from tests.support.tones import record, write_table
from tools.estimate import Held, empty_model, expected_clips, find_data, model_shape, model_size, taken, training_memory
from tools.recipe import apply_values, main, recipe_names, recipe_purpose, recipe_values

RECIPES = ROOT / "recipes"
NAMES = recipe_names(RECIPES)
SHRUNK = {
    "compute.processes": 1,
    "download.synthetic.train": 6,
    "download.synthetic.validation": 2,
    "download.synthetic.test": 4,
    "download.common_voice.sha256": None,  # of a release made here
    "download.common_voice.locale": None,
    "whisper.scratch.d_model": 16,
    "whisper.scratch.layers": 1,
    "whisper.scratch.heads": 2,
    "train.batch_size": 2,
    "train.precision": "fp32",
    "train.warmup_steps": 1,
    "train.max_steps": 2,
    "train.log_every": 1,
    "train.eval_every": 1,
    "train.save_every": 1,
    "train.interpolate": [],  # of a base that knows nothing
    "evaluate.bootstrap_samples": 100,
    "evaluate.conditions.clips": 1,
}


@pytest.fixture
def params(tmp_path) -> Path:
    """A copy of params.yaml at its default."""
    path = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
    apply_values(path, recipe_values(RECIPES, "default"))
    return path


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """The user's data folder."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("VISKA_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def tool(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    if not environment:
        return call(main, *arguments)
    command = [sys.executable, "-m", "tools.recipe", *map(str, arguments)]  # what libraries read as they are imported
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def load(path: Path) -> dict:
    return YAML(typ="safe", pure=True).load(path)


def comments(path: Path) -> list[str]:
    return re.findall(r"(?:^|(?<= ))# .*", path.read_text(), re.MULTILINE)


def test_default_is_the_shipped_file(params):
    assert params.read_bytes() == (ROOT / "params.yaml").read_bytes(), (
        "params.yaml holds a recipe: `python -m tools.recipe set default`; or its values changed and those of"
        " recipes/default.yaml did not"
    )


def test_default_has_every_value_that_a_stage_lists_and_no_recipe_has_others(params):
    entries = load(ROOT / "dvc.yaml")["stages"].values()
    listed = {section for entry in entries for section in entry.get("do", entry)["params"]}
    listed.add("features")  # which dvc.yaml itself takes
    keys = {key for key, _ in flatten(load(params)) if key.partition(".")[0] in listed}
    for name in NAMES:
        assert set(recipe_values(RECIPES, name)) == keys


def test_the_recipes_that_the_readme_names():
    assert [
        *("default", "digits", "fleurs-sv", "kb-whisper-small", "lab-18k", "lab-2500", "lab-search", "nst"),
        *("rixvox", "swedish-small", "swedish-turbo"),
    ] == NAMES
    printed = tool("list").stdout.splitlines()
    assert [line.split()[0] for line in printed] == NAMES
    assert all(len(line.split()) > 5 for line in printed)
    assert tool("show", "digits").stdout == (RECIPES / "digits.yaml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_changes_its_values_alone_and_default_takes_them_back(params, name):
    before, said = params.read_bytes(), comments(params)
    changes = apply_values(params, recipe_values(RECIPES, name))
    load_params(params)
    assert dict(flatten(load(params))) == dict(flatten(load(ROOT / "params.yaml"))) | {
        key: after for key, (_, after) in changes.items()
    }
    assert {key: after for key, (_, after) in changes.items()}.items() <= recipe_values(RECIPES, name).items()
    assert comments(params) == said
    lines = zip(before.decode().splitlines(), params.read_text().splitlines(), strict=True)
    assert sum(one != other for one, other in lines) == len(changes)
    apply_values(params, recipe_values(RECIPES, "default"))
    assert params.read_bytes() == before


def test_a_recipe_is_the_same_whatever_stood_there_before(params):
    apply_values(params, recipe_values(RECIPES, "digits"))
    alone = params.read_bytes()
    apply_values(params, recipe_values(RECIPES, "lab-18k") | {"train.dropout": 0.3})
    apply_values(params, recipe_values(RECIPES, "digits"))
    assert params.read_bytes() == alone


def test_what_belongs_to_the_machine_stays(params):
    apply_values(params, {"compute.processes": 3})
    apply_values(params, recipe_values(RECIPES, "lab-2500"))
    assert load(params)["compute"]["processes"] == 3


def test_values_besides_the_recipe(params):
    result = tool(
        *("set", "lab-search", "--params", params, "--set", "train.learning_rate=2e-5"),
        *("--set", "download.common_voice.train.tables=[train, other]", "--set", "whisper.scratch={seed: 7}"),
    )
    assert result.returncode == 0
    assert "train.learning_rate: 6e-3 → 2e-5" in result.stdout.splitlines()
    values = dict(flatten(load(params)))
    assert values["train.learning_rate"] == 2e-5
    assert values["train.max_steps"] == 100
    assert values["download.common_voice.train.tables"] == ["train", "other"]
    assert (values["whisper.scratch.seed"], values["whisper.scratch.layers"]) == (7, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--set", "train.learning_rat=1"], "train.learning_rat: no such key; did you mean learning_rate?"),
        (["digits", "--set", "train.learning_rate=-1"], "train.learning_rate: Input should be greater than 0, found"),
        (["digits", "--set", "train.seed.x=1"], "train.seed: Input should be a valid integer"),
        (["digits", "--set", "train=5"], "train: Input should be a valid dictionary"),
        (["digits", "--set", "train.epochs=2"], "train: exactly one of max_steps and epochs must be null"),
        (["digits", "--set", "train.seed"], "--set train.seed: expected KEY=VALUE, such as"),
        (["digits", "--set", "train.seed=[1"], "--set train.seed=[1: '[1' is not valid YAML"),
        (["digit"], "has no recipe digit; choose one of default, digits, "),
        (["default", "--set", "download.corpus=folder"], "recordings is missing"),
    ],
)
def test_what_is_wrong_is_told_and_changes_nothing(params, data, arguments, message):
    before = params.read_bytes()
    result = tool("set", *arguments, "--params", params)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert params.read_bytes() == before
    assert [path.name for path in params.parent.iterdir() if path.is_file()] == ["params.yaml"]


@pytest.mark.parametrize("text", [None, "", "[1]", "train: [", "train:\n  seed: 1\n"])
def test_a_params_file_that_is_none(params, text):
    params.unlink() if text is None else params.write_text(text)
    with pytest.raises(UserError, match=r"params.yaml"):
        apply_values(params, {"train.seed": 2})
    assert text is None or params.read_text() == text


def test_recordings_are_pinned_and_pinned_again_when_they_changed(params, data):
    rows = [{"path": f"{number}.wav", "text": f"Mening {number}"} for number in range(3)]
    write_table(data / "mine", rows)
    apply_values(
        params, recipe_values(RECIPES, "default") | {"download.corpus": "folder", "download.folder.path": "mine"}
    )
    first = load(params)["download"]["folder"]["digest"]
    assert first == folder.recordings_digest(data / "mine")
    record(data / "mine" / "1.wav", 9)
    assert tool("set", "--params", params).stdout.startswith("download.folder.digest: ")
    section = load(params)["download"]["folder"]
    assert section["path"] == "mine"
    assert section["digest"] == folder.recordings_digest(data / "mine") != first
    apply_values(params, {"download.folder.digest": first})  # as told, where it is told
    assert load(params)["download"]["folder"]["digest"] == first


def test_a_digest_of_figures_alone_stays_a_text(params):
    apply_values(params, {"download.folder.digest": "12345678"})
    assert load(params)["download"]["folder"]["digest"] == "12345678"


def test_a_recipe_is_described_in_its_first_line():
    for name in NAMES:
        first, second = (RECIPES / f"{name}.yaml").read_text().splitlines()[:2]
        assert first.startswith("# ") and second.startswith("# ")
        assert recipe_purpose(RECIPES / f"{name}.yaml") == first[2:]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_to_its_end(params, data, tiny, tmp_path, name):
    values = recipe_values(RECIPES, name)
    if values["whisper.base"] != "scratch":
        values |= {"whisper.base": str(tiny), "whisper.revision": folder_digest(tiny), "featurize.n_mels": 80}
    if values["download.corpus"] == "hub":  # which tests/test_hub_corpus.py has
        values["download.corpus"] = "common_voice"
    apply_values(params, values | SHRUNK)
    pack_release(data, values["download.common_voice.archive"])
    scores = run_stages(params, tmp_path)
    assert 0 <= scores["tuned"]["wer_low"] <= scores["tuned"]["wer_high"]
    assert scores["pretrained"].get("untrained") is not scores["tuned"].get("untrained")
    assert scores["tuned"]["clips"] == (2 if values["download.corpus"] == "common_voice" else 4)


def pack_release(data: Path, name: str) -> None:
    """A release with every table that a recipe names."""
    others = [row(number, f"other {number % 4}") for number in range(300, 308)]
    plain(other=others, validated=[row(number, f"new {number % 4}") for number in range(400, 408)]).pack(data).rename(
        data / name
    )


def run_stages(params: Path, place: Path) -> dict[str, dict]:
    """All stages as dvc.yaml has them, in this process; returns the scores."""
    raw, shards, models = place / "raw", place / "features", place / "models"
    values = load_params(params)
    download(values.download, raw, place / "dropped.tsv", place / "download.json", 1)
    for split in SPLITS:
        featurize(values.featurize, raw / split, shards / split, place / f"{split}.json", 1)
    pretrained(values.whisper, shards / "train", models / "pretrained")
    paths = Paths(
        train_shards=shards / "train",
        validation=shards / "validation",
        pretrained=models / "pretrained",
        checkpoints=models / "checkpoints",
        trackers=place / "runs",
        tuned=models / "tuned",
        curves=place / "curves",
        dropped=place / "dropped-train.tsv",
        metrics=place / "train.json",
        details=place / "train-details.json",
    )
    train(values.train, values.compute, values.checkpoints, paths)
    scores = {}
    for name in ("pretrained", "tuned"):
        results = Results(place / f"{name}.tsv", place / name, place / "metrics.json", place / "details.json")
        scores[name] = evaluate(values.evaluate, values.compute, models / name, shards / "test", results)
    return scores


QUICK = ("--set", "whisper.scratch={d_model: 16, layers: 1, heads: 2}", "--set", "train.batch_size=2")


def test_check_says_what_the_default_needs_and_changes_nothing(params):
    before = params.read_bytes()
    result = tool("check", "default", "--params", params, *QUICK)
    assert result.returncode == 0, result.stderr
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert {"data", "clips", "download", "disk", "memory", "time"} <= said.keys()
    assert said["clips"].startswith("3,000 train, 150 validation, 400 test (params.yaml)")
    assert re.search(r"^\d\.\d GB \(raw clips .*estimated\); \d+\.\d GB are free$", said["disk"])
    assert "800 steps of" in said["time"] and "600 clips of" in said["time"] and "measured" in said["time"]
    assert params.read_bytes() == before


def test_check_names_what_is_lacking(params, data, tiny):
    own = ("--set", f"whisper.base={tiny}", "--set", f"whisper.revision={folder_digest(tiny)}")
    result = tool("check", "lab-2500", "--params", params, *own, "--set", "train.batch_size=2")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "cv-corpus-11.0-2022-09-21-sv-SE.tar.gz is missing (found in" in result.stdout
    assert "2,500 train, 500 validation, 5,069 test (known of the release; at most)" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("Error: lab-2500 does not run here yet; lacking: data")


def test_a_data_set_of_the_hub_counts_as_far_as_it_is_limited(params):
    apply_values(params, recipe_values(RECIPES, "fleurs-sv") | {"download.hub.train.limit": 20})
    values = load_params(params)
    assert find_data(values).text == "google/fleurs of the Hugging Face Hub, which `download` fetches"
    assert expected_clips(values, find_data(values)) == ({"train": 20}, "limits of params.yaml")


def test_of_several_corpora_what_each_gives_is_counted(params):
    known = {"train": 3000, "validation": 150, "test": 400}
    assert taken(known, None) == known
    assert taken(known, TrainSource(corpus="synthetic", limit=1000, share=0.25)) == known | {"train": 250}
    assert taken(known, TrainSource(corpus="hub", train_only=True)) == {"train": 3000, "validation": 0, "test": 0}
    assert taken({}, TrainSource(corpus="hub", limit=20)) == {"train": 20}
    assert taken({}, TrainSource(corpus="hub", share=0.5)) == {}
    corpora = "{ours: {corpus: synthetic, limit: 70}, more: {corpus: synthetic, train_only: true, share: 0.5}}"
    result = tool("check", "default", "--params", params, *QUICK, "--set", f"download.corpora={corpora}")
    assert "1,570 train, 150 validation, 400 test (params.yaml)" in result.stdout


def test_a_release_that_is_to_be_fetched_lacks_its_key_alone(params, data, monkeypatch):
    names = {"corpus": "common_voice", "common_voice.archive": None, "common_voice.release": "25.0"}
    apply_values(params, {f"download.{key}": value for key, value in names.items()})
    values = load_params(params)
    monkeypatch.setenv("MDC_API_KEY", "")
    assert find_data(values).lack == "data" and "MDC_API_KEY is missing" in find_data(values).text
    monkeypatch.setenv("MDC_API_KEY", "key")
    found = find_data(values)
    assert (found.text, found.lack) == ("Common Voice 25.0 in sv-SE, which `download` fetches", "")
    assert expected_clips(values, found)[0] == {"train": 8254, "validation": 5501, "test": 5505}


@pytest.mark.parametrize(("name", "millions"), [("tiny", 38), ("base", 73), ("small", 242), ("medium", 764)])
def test_a_shape_is_known_by_name(params, name, millions):
    """OpenAI's model card: 39, 74, 244 and 769 M, the encoder's fixed positions among them."""
    apply_values(params, {"whisper.base": f"openai/whisper-{name}", "whisper.revision": "0" * 40})
    config = model_shape(load_params(params))
    assert round(model_size(config) / 1e6) == pytest.approx(millions, rel=0.02)


def test_an_unknown_base_is_said(params):
    apply_values(params, {"whisper.base": "somebody/wonder", "whisper.revision": "0" * 40})
    with pytest.raises(UserError, match=r"the shape of somebody/wonder is not known"):
        model_shape(load_params(params))


def test_clips_of_a_release_at_hand_are_counted(params, data):
    values = recipe_values(RECIPES, "lab-2500")
    pack_release(data, values["download.common_voice.archive"])
    apply_values(params, values | {"download.common_voice.locale": None})
    found = load_params(params)
    assert not find_data(found).lack
    clips, basis = expected_clips(found, find_data(found))
    assert basis == "counted; at most" and set(clips) == set(SPLITS) and 0 < clips["train"] < 20


def test_what_training_will_hold_follows_from_what_it_trains(params):
    """Values of turbo: 809 M by OpenAI's model card, 31 M of them those of adapters of rank 32 in all linear layers."""

    def held(**changes) -> Held:
        apply_values(
            params, recipe_values(RECIPES, "swedish-turbo") | {f"train.{key}": changes[key] for key in changes}
        )
        values = load_params(params)
        return training_memory(empty_model(model_shape(values)), values.train)

    adapters, whole = held(), held(**{"lora.rank": 0})
    bytes_each, weights = 4, 0.809e9
    assert whole.training == pytest.approx(4 * bytes_each * weights, rel=0.02)
    assert whole.checkpoint == pytest.approx(4 * bytes_each * weights, rel=0.02)
    rank, encoder, decoder = 32, 32, 4
    attention, feed_forward = 4 * 2 * 1280, 2 * 5 * 1280
    values = rank * (encoder * (attention + feed_forward) + decoder * (2 * attention + feed_forward))
    assert adapters.training == pytest.approx(bytes_each * (weights + 4 * values), rel=0.02)
    assert adapters.checkpoint == 4 * bytes_each * values
    in_bytes = held(**{"lora.rank": 0, "optimizer": "adamw_8bit"})
    assert 2.4 * bytes_each * weights < in_bytes.training < 2.8 * bytes_each * weights
    muon, by_muon = held(**{"lora.rank": 0, "optimizer": "muon"}), 0.74e9  # all but embeddings and convolutions
    assert muon.training == pytest.approx(whole.training - bytes_each * by_muon, rel=0.02)
    frozen = held(**{"lora.rank": 0, "freeze": "encoder"})
    assert frozen.training == pytest.approx(bytes_each * (weights + 3 * 0.172e9), rel=0.02)


# Commits of the Hub

NEWEST, OLD = "0123456789abcdef0123456789abcdef01234567", "f" * 40
NO_PROXIES = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), "")
KNOWN = {"kb": "3564d61a42fc210ceaa55a22a96dd64478959c78", "small": "973afd24965f72e36ca33b3055d56a652f456b4d"}


@pytest.fixture
def ask(tmp_path):
    """Call with repositories, as id: commits, and arguments: the tool, with a Hub that has those."""

    def call(repos: dict[str, list[str]], *arguments: object) -> subprocess.CompletedProcess:
        (tmp_path / "empty").mkdir(exist_ok=True)
        with serve({name: dict.fromkeys(commits, tmp_path / "empty") for name, commits in repos.items()}) as hub:
            return tool(
                *arguments, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "home"), **NO_PROXIES
            )

    return call


def test_commits_are_pinned_with_their_date_and_the_default_takes_that_back(params, ask):
    before = params.read_bytes()
    repos = {"openai/whisper-small": [OLD, NEWEST], "datasets/google/fleurs": [NEWEST, OLD]}
    result = ask(repos, "set", "fleurs-sv", "--pin", "--params", params)
    assert result.returncode == 0, result.stderr
    values = dict(flatten(load(params)))
    assert (values["whisper.revision"], values["download.hub.revision"]) == (NEWEST, OLD)
    dated = [line for line in params.read_text().splitlines() if line.endswith(f"; commit of {DATE}")]
    assert [line.split()[1] for line in dated] == [NEWEST, OLD]
    assert f"google/fleurs: the newest commit is {OLD}, of {DATE}" in result.stdout
    again = ask(repos, "set", "--pin", "--params", params)
    assert again.stdout.endswith(": 0 changed\n")
    apply_values(params, recipe_values(RECIPES, "default"))
    assert params.read_bytes() == before


def test_a_data_set_without_a_commit_is_pinned(params, ask):
    own = ("--set", "download.corpus=hub", "--set", "download.hub.id=team/speech")
    result = ask({"datasets/team/speech": [NEWEST]}, "set", "default", "--pin", "--params", params, *own)
    assert result.returncode == 0, result.stderr
    assert load_params(params).download.hub.revision == NEWEST


@pytest.mark.parametrize(
    ("repos", "arguments", "said"),
    [
        (
            {"KBLab/kb-whisper-small": [NEWEST]},
            ["kb-whisper-small"],
            f"whisper.revision: the Hub does not know the commit {KNOWN['kb']} of KBLab/kb-whisper-small: take",
        ),
        (
            {},
            ["kb-whisper-small", "--pin"],
            "whisper.revision: the Hub shows no model KBLab/kb-whisper-small: ",
        ),
        (
            {"openai/whisper-small": [KNOWN["small"]]},
            ["fleurs-sv"],
            "download.hub.revision: the Hub shows no dataset google/fleurs: check the name",
        ),
    ],
)
def test_what_the_hub_does_not_know_is_told_at_once_and_changes_nothing(params, ask, repos, arguments, said):
    before = params.read_bytes()
    result = ask(repos, "set", *arguments, "--params", params)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"Error: {said}")
    assert params.read_bytes() == before


def test_a_commit_that_the_hub_knows_is_taken(params, ask):
    result = ask({"KBLab/kb-whisper-small": [KNOWN["kb"], NEWEST]}, "set", "kb-whisper-small", "--params", params)
    assert (result.returncode, result.stderr) == (0, "")
    assert load_params(params).whisper.revision == KNOWN["kb"]


def test_without_the_hub_a_recipe_is_set_unchecked_and_cannot_be_pinned(params):
    away = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0", **NO_PROXIES}
    pinned = tool("set", "kb-whisper-small", "--pin", "--params", params, **away)
    assert pinned.returncode == 1
    assert pinned.stderr.startswith("Error: the Hub cannot be asked for KBLab/kb-whisper-small (")
    result = tool("set", "kb-whisper-small", "--params", params, **away)
    assert result.returncode == 0
    assert result.stderr.endswith("): whether it knows the revisions was not checked\n")
    assert load_params(params).whisper.revision == KNOWN["kb"]
    assert tool("set", "kb-whisper-small", "--params", params, HF_HUB_OFFLINE="1").stderr == ""

"""Publishing: the same bytes from the same pin, cards that the Hub accepts, and a Hub that has all or nothing of it."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from stages.asr.clips import SPLITS
from stages.asr.model import folder_digest, load_model, save_model
from stages.corpora.examples import N_EXAMPLES, read_examples
from stages.params import load_params
from stages.runtime.errors import UserError
from stages.runtime.files import files_digest, write_json, write_text
from stages.runtime.imports import imported_names
from stages.versioning.pins import PublishedFolder, Repository
from tests.support.hub import Hub, files, serve, sha256
from tests.support.material import ROOT, allow, speech
from tests.support.repository import commit, copy_repository, run, set_params
from tools.publish.__main__ import main, write_folders
from tools.publish.card import model_card, model_license
from tools.publish.hub import files_by_name
from tools.publish.metadata import metadata_errors, read_metadata
from tools.publish.release import Release, open_release

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:dvc")

PIN, OWNER = "tuned@v1.0.0", {"hf_anna": "anna"}
RATES = {"wer": 12.34, "wer_low": 10.5, "wer_high": 14.0, "cer": 5.67}
DETAILS = {"wer_raw": 23.45, "wer_known_speakers": 11.0, "wer_new_speakers": 13.0, "clips": 7, "words": 40}
DETAILS |= {"wer_by": "clip", "speakers": 5, "new_speakers": 1}
DETAILS |= {"wer_new_speakers_low": 9.0, "wer_new_speakers_high": 17.0, "wer_new_speakers_by": "clip"}
BEYOND = {"wer_full_window": 15.43, "wer_stressed": 45.6}  # of a trained model alone
BEYOND_DETAILS = {"wer_full_window_low": 11.0, "wer_full_window_high": 19.0, "wer_full_window_by": "speaker"}
BEYOND_DETAILS |= {"full_window_clips": 6, "conditions": 9, "condition_clips": 4}
CODE = ("app", "constraints.txt", "pyproject.toml", "LICENSE")


def write_results(folder: Path) -> None:
    """What the stages leave beside the models: scores, counts, and files for DVC to keep."""
    write_json(folder / "metrics/evaluate/pretrained.json", RATES | {"wer": 100.0, "untrained": True})
    write_json(folder / "metrics/evaluate/tuned.json", RATES | BEYOND)
    write_json(folder / "metrics/details/evaluate/pretrained.json", DETAILS)
    write_json(folder / "metrics/details/evaluate/tuned.json", DETAILS | BEYOND_DETAILS)
    write_json(folder / "metrics/train.json", {"validation_wer": 9.87, "best_step": 1200})
    write_json(folder / "metrics/details/train.json", {"steps": 1500, "dropped": {}})
    counts = {"clips": 2000, "speakers": 12, "dropped": {"too long": 3}}
    write_json(folder / "metrics/details/download.json", dict.fromkeys(SPLITS, counts))
    for split in SPLITS:
        heard = {"clips": 1999, "seconds": 7200.0, "dropped": {"x": 1}}
        write_json(folder / f"metrics/details/featurize/{split}.json", heard)
        write_text(folder / f"data/raw/{split}/clips.tsv", split)
        write_text(folder / f"data/features/{split}/00000.zip", split)
    write_json(folder / "metrics/details/featurize/probes.json", {})
    for name in ("raw", "features"):
        write_text(folder / f"data/{name}/probes/probes.tsv", "name\tlanguage\n")
    for name in ("dropped", "dropped-train", "transcripts/pretrained", "transcripts/tuned"):
        write_text(folder / f"data/{name}.tsv", name)
    for name in ("curves", "tables/pretrained", "tables/tuned"):
        write_text(folder / f"metrics/{name}/a.tsv", name)


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny) -> Path:
    """A clone whose model says something, with one pin; nothing in it may be changed."""
    folder = copy_repository(tmp_path_factory.mktemp("project") / "clone")
    for name in CODE:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored) if (ROOT / name).is_dir() else shutil.copy(
            ROOT / name, folder / name
        )
    model, generator = load_model(tiny), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weights in model.whisper.named_parameters():
            if "norm" not in name:
                weights.copy_(torch.randn(weights.shape, generator=generator) * 0.5)
    allow(model, set(range(97, 123)))
    model.whisper.generation_config.max_length = 24
    save_model(model, folder / "models/tuned")
    shutil.copytree(tiny, folder / "models/pretrained")
    write_results(folder)
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "commit", "--quiet", "--force")
    commit(folder)
    run(folder, "git", "tag", "-am", "first", PIN)
    return folder


@pytest.fixture
def clone(project, tmp_path) -> Path:
    """The project for a test to change."""
    return Path(shutil.copytree(project, tmp_path / "clone", symlinks=True))


@pytest.fixture
def release(project) -> Release:
    with open_release(project, None) as release:
        yield release


@pytest.fixture
def dry_run(monkeypatch, capsys):
    """Call with a clone and arguments: runs the command there; returns what it printed as {folder: digest}."""

    def call(folder: Path, *arguments: object) -> dict[str, str]:
        monkeypatch.chdir(folder)
        main.main([*map(str, arguments), "--to", "anna/sv", "--dry-run"], standalone_mode=False)
        return {line.split()[1]: line.split()[0] for line in capsys.readouterr().out.splitlines()}

    return call


# The folders


def test_a_pin_gives_the_same_bytes_whatever_the_workspace_holds(dry_run, clone, tmp_path):
    first = dry_run(clone, "both", "--out", tmp_path / "one")
    write_text(clone / "params.yaml", (clone / "params.yaml").read_text().replace("batch_size: 16", "batch_size: 8"))
    write_json(clone / "metrics/evaluate/tuned.json", RATES | {"wer": 1.0})
    (clone / "app/style.css").write_text("")
    shutil.rmtree(clone / "models/tuned")
    second = dry_run(clone, "both", "--out", tmp_path / "two")
    assert list(first.values()) == list(second.values())
    assert list(first) == [str(tmp_path / "one/model"), str(tmp_path / "one/space")]
    for kind in ("model", "space"):
        one, two = files(tmp_path / "one" / kind), files(tmp_path / "two" / kind)
        assert {name: path.read_bytes() for name, path in one.items()} == {
            name: p.read_bytes() for name, p in two.items()
        }
        assert first[str(tmp_path / "one" / kind)] == files_digest(files_by_name(tmp_path / "two" / kind))


def test_a_digest_is_of_all_files_and_that_of_a_model_folder(tmp_path, tiny):
    original = files_digest(files_by_name(tiny))
    assert original == folder_digest(tiny)
    copied = Path(shutil.copytree(tiny, tmp_path / "copy"))
    write_text(copied / "deep/a.txt", "a")
    changed = files_digest(files_by_name(copied))
    write_text(copied / "deep/a.txt", "b")
    assert len({original, changed, files_digest(files_by_name(copied))}) == 3


def test_the_newest_pin_is_published_and_the_workspace_where_asked(dry_run, clone, tmp_path):
    commit(clone)
    run(clone, "git", "tag", "-am", "second", "tuned@v1.10.0")
    run(clone, "git", "tag", "-am", "third", "tuned@v1.9.0")
    set_params(clone, {"app.queue": 5})  # in no commit yet
    head = run(clone, "git", "rev-parse", "HEAD").strip()
    for arguments, tag, revision in [
        ([], "`tuned@v1.10.0`", head),
        (["--model", PIN], f"`{PIN}`", run(clone, "git", "rev-parse", "HEAD~1").strip()),
        (["--model", "tuned"], "none: a workspace's model", f"{head}-dirty"),
    ]:
        dry_run(clone, "model", "--out", tmp_path, *arguments)
        card = (tmp_path / "model/README.md").read_text()
        assert f"| Git tag | {tag} |" in card
        assert f"| Git commit | `{revision}` |" in card


def gather(folder: Path) -> None:
    """Bring a clone's results into the shape of older versions: the details in one file with what people compare."""
    lock = YAML().load(folder / "dvc.lock")
    for details in sorted((folder / "metrics/details").rglob("*.json")):
        path = folder / "metrics" / details.relative_to(folder / "metrics/details")
        compared = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, compared | json.loads(details.read_text()))
        details.unlink()
    for out in (out for stage in lock["stages"].values() for out in stage.get("outs", [])):
        out["path"] = out["path"].replace("metrics/details/", "metrics/")
        if out["path"].startswith("metrics/") and out["path"].endswith(".json"):
            out["md5"] = hashlib.md5((folder / out["path"]).read_bytes()).hexdigest()
    YAML().dump(lock, folder / "dvc.lock")


def test_a_version_from_before_the_details_is_told_as_fully(dry_run, clone, tmp_path):
    dry_run(clone, "model", "--out", tmp_path / "new")
    gather(clone)
    commit(clone)
    run(clone, "git", "tag", "-am", "older", "tuned@v1.1.0")
    dry_run(clone, "model", "--out", tmp_path / "older")
    new, older = ((tmp_path / name / "model/README.md").read_text() for name in ("new", "older"))
    start, end = "## Scores", "## Where it comes from"
    assert new[new.index(start) : new.index(end)] == older[older.index(start) : older.index(end)]


@pytest.mark.parametrize(
    ("harm", "arguments", "message"),
    [
        (lambda clone: run(clone, "git", "tag", "-d", PIN), [], "no version is pinned yet: run `make pin"),
        (
            lambda clone: None,
            ["--model", "tuned@v9.0.0"],
            "there is no model tuned@v9.0.0: choose one of tuned@v1.0.0,",
        ),
        (lambda clone: None, ["--model", "pretrained"], "there is no model pretrained"),
        (
            lambda clone: (clone / "models/tuned/config.json").write_text("{}"),
            ["--model", "tuned"],
            "models/tuned is not the model of dvc.lock",
        ),
        (
            lambda clone: write_json(clone / "metrics/evaluate/tuned.json", RATES | {"wer": 1.0}),
            ["--model", "tuned"],
            "metrics/evaluate/tuned.json does not belong to models/tuned",
        ),
        (
            lambda clone: (clone / "metrics/train.json").unlink(),
            ["--model", "tuned"],
            "tuned has no metrics/train.json: run `make repro`",
        ),
        (lambda clone: write_text(clone / "build/publish/model/mine.txt", "x"), [], "holds something else"),
    ],
    ids=["no pin", "unknown", "pretrained", "other model", "other scores", "no metrics", "place taken"],
)
def test_what_cannot_be_published_is_told(dry_run, clone, harm, arguments, message):
    harm(clone)
    before = files(clone / "build")
    with pytest.raises(UserError, match=message):
        dry_run(clone, "model", *arguments)
    assert files(clone / "build") == before


# The card


def test_the_card_is_valid_and_says_what_the_revision_says(release, project):
    card = model_card(release, "anna/sv", "mit")
    assert metadata_errors(str(card), "model") == []
    data = ModelCard(str(card)).data
    assert (data.language, data.license, data.library_name) == ("sv", "mit", "transformers")
    assert (data.pipeline_tag, data.base_model, data.datasets) == ("automatic-speech-recognition", None, None)
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [
        ("wer", 15.43),  # what the snippet gives comes first
        ("wer", 12.34),
        ("wer", 23.45),
        ("cer", 5.67),
    ]
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert "synthetic" in data.tags
    assert "trained on a synthetic corpus: it does not know Swedish" in card.text
    assert "| WER, on the full window |  | 15.4 | 11.0 to 19.0 by speaker |" in card.text
    assert "| WER, at the clip's own length | 100.0 | 12.3 | 10.5 to 14.0 by clip, 5 speakers |" in card.text
    assert "| WER under changed conditions |  | 45.6 | mean of 9 conditions, 4 clips |" in card.text
    assert "on the full window of 2 s, 6 of the clips;" in " ".join(card.text.split())
    assert "| WER, raw text | 23.4 | 23.4 |" in card.text
    assert "| WER, new voices | 13.0 | 13.0 | 9.0 to 17.0 by clip, 1 speaker |" in card.text
    assert "learning_rate: 6e-3" in card.text
    assert "| train | 1,999 | 2.0 | 12 | 4 |" in card.text
    lock = YAML(typ="safe").load(project / "dvc.lock")["stages"]["train"]
    hashes = [item["md5"] for item in [*lock["deps"], *lock["outs"]] if item["path"].startswith(("data/fea", "models"))]
    weights = sha256(project / "models/tuned/model.safetensors")
    for known in (PIN, run(project, "git", "rev-parse", "HEAD").strip(), weights, *hashes):
        assert f"`{known}`" in card.text


def test_a_version_from_before_the_full_window_was_measured_has_the_rates_it_has(release):
    older = replace(
        release, metrics=release.metrics | {"evaluate/tuned": RATES | {"wer_raw": 23.45, "clips": 7, "words": 40}}
    )
    card = model_card(older, "anna/sv", "mit")
    assert metadata_errors(str(card), "model") == []
    assert [result.metric_value for result in ModelCard(str(card)).data.eval_results] == [12.34, 23.45, 5.67]
    assert "| WER, at the clip's own length | 100.0 | 12.3 | 10.5 to 14.0 |" in card.text
    assert "full window" not in card.text.partition("## Scores")[2].partition("## How")[0]


def test_the_snippet_in_the_card_is_python_and_names_the_model(release):
    code = str(model_card(release, "anna/sv", "mit")).partition("```python")[2].partition("```")[0]
    assert imported_names(code) == {"transformers", "transformers.pipeline"}
    texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert {"anna/sv", "sv", "transcribe"} <= set(texts)


def test_the_demo_reads_from_the_card_what_a_clone_reads_from_git(release, project, tmp_path):
    folder = write_folders(release, ["model"], "anna/sv", None, tmp_path)["model"]
    (theirs,), ours = PublishedFolder(folder).versions(), Repository(project).versions()[0]
    assert (
        (theirs.wer, theirs.wer_low, theirs.wer_high) == (ours.wer, ours.wer_low, ours.wer_high) == (12.34, 10.5, 14.0)
    )
    assert theirs.data == ours.data == "synthetic, 1,999 clips"


def changed(release: Release, values: dict[str, object]) -> Release:
    """A release with other values at dotted keys of its params."""
    params = deepcopy(release.params)
    for place, value in values.items():
        *parents, key = place.split(".")
        section = params
        for parent in parents:
            section = section[parent]
        section[key] = value
    return replace(release, params=params)


def test_real_speech_and_a_base_on_the_hub(release):
    values = {"download.corpus": "common_voice", "whisper.base": "openai/whisper-small", "whisper.revision": "ab" * 20}
    real = changed(release, values)
    card = model_card(real, "anna/sv", model_license(real, None))
    assert metadata_errors(str(card), "model") == []
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "openai/whisper-small")
    assert (card.data["base_model_relation"], card.data.datasets) == ("finetune", ["common_voice"])
    assert {result.dataset_config for result in card.data.eval_results} == {"sv-SE"}
    assert "CC0-1.0" in card.text
    assert "synthetic" not in card.data.tags
    assert "does not know" not in card.text
    assert "scratch:" not in card.text


def test_no_path_of_this_machine_is_published(dry_run, clone, tmp_path):
    secret = {"download.corpus": "folder", "download.folder.path": "/home/anna/hemligt/recordings"}
    secret |= {"whisper.base": "/home/anna/hemligt/mine", "whisper.revision": "ab" * 20}
    set_params(clone, secret)
    dry_run(clone, "both", "--model", "tuned", "--license", "mit", "--out", tmp_path / "out")
    texts = [path.read_bytes() for path in files(tmp_path / "out").values()]
    assert not [text for text in texts if b"hemligt" in text]
    card = (tmp_path / "out/model/README.md").read_text()
    assert metadata_errors(card, "model") == []
    assert "base_model" not in read_metadata(card)


@pytest.mark.parametrize("base", ["KBLab/kb-whisper-small", "./mine"])
def test_a_license_that_is_not_known_is_asked_for(release, base):
    other = changed(release, {"whisper.base": base})
    with pytest.raises(UserError, match=f"the license of {base} is not known"):
        model_license(other, None)
    assert model_license(other, "cc-by-4.0") == "cc-by-4.0"


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("language: sv", "language: swedish", '"language[0]" must be an ISO 639 code'),
        ("language: sv", "language: [sv, 3]", '"language[1]" Input should be a valid string'),
        ("license: mit", "license: MIT License", '"license[0]" must be one of'),
        ("- wer", "- 3", '"metrics[0]" Input should be a valid string'),
        ("value: 15.43", "worth: 15.43", '"model-index[0].results[0].metrics[0].value" is required'),
        ("value: 15.43", "value: [1]", '"model-index[0].results[0].metrics[0].value" must be a number'),
        ("type: synthetic", "kind: synthetic", '"model-index[0].results[0].dataset.type" is required'),
        ("license: mit", "base_model: a/b/c", '"base_model[0]" String should match'),
        ("license: mit", "license: [", "the metadata is not valid YAML"),
        ("---\n", "", "there is no metadata"),
    ],
)
def test_what_the_hub_would_refuse(release, before, after, complaint):
    card = str(model_card(release, "anna/sv", "mit"))
    assert before in card
    (line,) = metadata_errors(card.replace(before, after, 1), "model")
    assert line.startswith(complaint)


def test_a_card_that_is_not_valid_is_never_written(dry_run, clone):
    with pytest.raises(UserError, match=r'the model\'s card is not valid: "license\[0\]" must be one of'):
        dry_run(clone, "model", "--license", "beer")
    assert not (clone / "build").exists()


# The Space


@pytest.fixture
def space(release, tmp_path) -> Path:
    return write_folders(release, ["space"], "anna/sv", None, tmp_path)["space"]


def test_a_space_has_all_that_the_hub_needs_to_build_it(space):
    head = read_metadata((space / "README.md").read_text())
    assert metadata_errors((space / "README.md").read_text(), "space") == []
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert (head["sdk"], head["sdk_version"], head["python_version"]) == ("gradio", pins["gradio"], "3.11")
    assert (head["models"], head["license"]) == (["anna/sv"], "mit")
    assert (space / head["app_file"]).is_file()
    wanted = [line for line in (space / "requirements.txt").read_text().splitlines() if not line.startswith(("#", "-"))]
    assert {f"torch=={pins['torch']}", f"transformers=={pins['transformers']}", f"gradio=={pins['gradio']}"} <= set(
        wanted
    )
    assert [line for line in wanted if line.count("==") != 1] == ["pydantic"]  # which gradio's own extras bound
    assert not [line for line in wanted if line.startswith(("dvc", "gto", "espeak", "datasets", "pydantic-core"))]
    settings = load_params(space / "params.yaml").app
    assert settings.recordings is None
    examples = read_examples(space / "examples")
    assert len(examples) == N_EXAMPLES and '"--examples", "examples"' in (space / "space.py").read_text()
    assert all(soundfile.info(example.path).duration > 0.5 and example.text for example in examples)


def test_a_space_stands_alone_and_shows_its_model(space, tmp_path):
    sources = [Path(name) for name in files(space) if name.endswith(".py") and name != "space.py"]
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in sources]
    assert "app.main" in modules
    code = f"""
import importlib, json, runpy, sys
sys.path.insert(0, {str(space)!r})
for name in {modules!r}:
    importlib.import_module(name)
own = [m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] in ("app", "stages", "tools", "tests")]
print(json.dumps([own, sorted(sys.modules)]))
sys.argv[1:] = ["--help"]
runpy.run_path({str(space / "space.py")!r}, run_name="__main__")
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    head, _, page = result.stdout.partition("\n")
    own, loaded = json.loads(head)
    assert all(Path(path).is_relative_to(space) for path in own)
    assert not {"dvc", "git", "gto", "scmrepo", "dvc_data"} & set(loaded)
    assert "--models" in page
    (model,) = space.glob("tuned-*")
    assert f'"{model.name}"' in (space / "space.py").read_text()
    assert load_model(model).window == 200


def test_a_space_has_what_the_code_of_a_package_imports(dry_run, clone, tmp_path):
    write_text(clone / "app/__init__.py", "import stages.corpora.synthetic\n")
    dry_run(clone, "space", "--model", "tuned", "--out", tmp_path)
    names = files(tmp_path / "space")
    assert {"app/__init__.py", "stages/corpora/__init__.py", "stages/corpora/synthetic.py"} <= names.keys()
    assert not [name for name in names if name.startswith(("tools", "tests"))]


@pytest.mark.parametrize("path", ["app/main.py", "stages/runtime/command.py"])
def test_a_version_from_before_the_demo_cannot_be_a_space(dry_run, clone, path):
    (clone / path).unlink()
    with pytest.raises(UserError, match=f"tuned has no {path}, which a Space needs: pin a newer commit"):
        dry_run(clone, "space", "--model", "tuned")
    assert not (clone / "build").exists()


# The Hub


@pytest.fixture(scope="module")
def shared():
    with serve({}, OWNER) as hub:
        yield hub


@pytest.fixture
def hub(shared) -> Hub:
    """A Hub that holds nothing."""
    for known in (shared.repos, shared.heads, shared.messages, shared.store, shared.broken, shared.asked):
        known.clear()
    return shared


def online(hub: Hub, home: Path) -> dict[str, str]:
    """A machine whose Hub is the stand-in, which has no Xet."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), "")
    hugging = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return os.environ | proxies | hugging | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


COMMANDS = """
import contextlib, io, json, os, sys
from stages.runtime.errors import UserError
from tools.publish.__main__ import main
for line in sys.stdin:
    folder, token, arguments = json.loads(line)
    os.chdir(folder)
    os.environ["HF_TOKEN"], said = token, io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            main.main(arguments, standalone_mode=False)
        except UserError as error:
            said.write(f"Error: {error}")
    print(json.dumps(said.getvalue().splitlines()), flush=True)
"""


@pytest.fixture(scope="module")
def publish(shared, tmp_path_factory):
    """Call with a clone and arguments: runs the command, in one other process for all; returns the lines it printed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = online(shared, tmp_path_factory.mktemp("home"))
    with subprocess.Popen([sys.executable, "-c", COMMANDS], env=env, **pipes) as process:

        def call(folder: Path, *arguments: str, token: str = "hf_anna") -> list[str]:
            process.stdin.write(json.dumps([str(folder), token, arguments]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield call


def test_what_was_pushed_is_fetched_and_transcribes(publish, project, hub, tmp_path):
    lines = publish(project, "both", "--to", "anna/sv")
    repos = ["anna/sv", "spaces/anna/sv"]
    assert lines == [f"{hub.url}/{repo}  {PIN}, commit {hub.heads[repo][:7]}" for repo in repos]
    assert [len(hub.repos[repo]) for repo in repos] == [2, 2]  # the Hub's own first commit, and ours
    assert hub.messages[hub.heads["anna/sv"]].startswith(f"{PIN} at ")
    speech(1.5).tofile(tmp_path / "sound.f32")
    code = """
import sys, numpy
from transformers import pipeline
sound, forced = numpy.fromfile(sys.argv[1], "f4"), {"language": "sv", "task": "transcribe"}
for model in sys.argv[2:]:
    transcribe = pipeline("automatic-speech-recognition", model=model)
    print(transcribe({"raw": sound, "sampling_rate": 16000}, generate_kwargs=forced)["text"])
"""
    command = [sys.executable, "-c", code, tmp_path / "sound.f32", "anna/sv", project / "models/tuned"]
    fetched = subprocess.run(command, env=online(hub, tmp_path / "home"), capture_output=True, text=True)
    assert fetched.returncode == 0, fetched.stderr
    theirs, ours = fetched.stdout.splitlines()
    assert theirs == ours
    assert len(ours) > 5


def test_a_second_push_sends_what_changed_and_removes_what_is_gone(publish, project, hub):
    publish(project, "model", "--to", "anna/sv")
    first = hub.heads["anna/sv"]
    assert publish(project, "model", "--to", "anna/sv") == [f"{hub.url}/anna/sv  unchanged since {first[:7]}"]
    assert hub.heads["anna/sv"] == first
    contents = {name: path.read_bytes() for name, path in files(hub.repos["anna/sv"][first]).items()}
    hub.add("anna/sv", contents | {"vocab.json": b"an older version's", "config.json": b"too"}, "older")
    hub.asked.clear()
    (line,) = publish(project, "model", "--to", "anna/sv")
    assert line == f"{hub.url}/anna/sv  {PIN}, commit {hub.heads['anna/sv'][:7]}"
    now = files(hub.repos["anna/sv"][hub.heads["anna/sv"]])
    assert {name: path.read_bytes() for name, path in now.items()} == contents
    assert not [request for request in hub.asked if request.startswith("PUT")]  # the weights are there


def test_files_of_others_are_not_deleted(publish, project, hub):
    theirs = hub.add("anna/sv", {"README.md": b"---\ntags: [mine]\n---\n", "mine.bin": b"x"}, "mine")
    (line,) = publish(project, "model", "--to", "anna/sv")
    assert line.startswith("Error: anna/sv has files that this tool did not write, such as mine.bin: choose another")
    assert hub.heads["anna/sv"] == theirs


@pytest.mark.parametrize(
    ("broken", "repo", "token", "message"),
    [
        ({}, "anna/sv", "", "no token for the Hub: create one with write access at http.*, then run `hf auth login`"),
        ({}, "anna/sv", "hf_wrong", "the Hub does not know this token"),
        ({}, "berit/sv", "hf_anna", "this token may not write to berit/sv: use one that may, or a name of your own"),
        ({}, "anna/s v", "hf_anna", "--to anna/s v: .*"),
        ({}, "sv", "hf_anna", "--to sv: give your user name too, as in anna/sv"),
        ({"validate": 400}, "anna/sv", "hf_anna", "the Hub refuses the model's card"),
        ({"validate": 0}, "anna/sv", "hf_anna", "the Hub at http.* did not answer .*run the same command again"),
        ({"store": 403}, "anna/sv", "hf_anna", "this token may not write to anna/sv"),
        ({"commit": 412}, "anna/sv", "hf_anna", "anna/sv was changed in the meantime: run the same command again"),
        ({"commit": 0}, "anna/sv", "hf_anna", "the Hub at http.* did not answer .*run the same command again"),
    ],
    ids=["no token", "unknown token", "not ours", "bad name", "no user", "card", "gone", "upload", "race", "cut"],
)
def test_what_goes_wrong_is_one_line_and_nothing_half(publish, project, hub, broken, repo, token, message):
    hub.broken |= broken
    (line,) = publish(project, "model", "--to", repo, token=token)
    assert re.match(f"Error: {message}", line)
    assert all(list(files(hub.repos[repo][head])) == [".gitattributes"] for repo, head in hub.heads.items())

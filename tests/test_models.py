"""The models to choose from: pins by Git and DVC, the workspace's, a Space's; loaded once, and not too many."""

import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import soundfile
import torch
from dvc.repo import Repo
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from app import video
from app.models import folder_models, repository_models
from app.rendering import progress_html
from app.transcriber import Transcriber
from app.turns import Turns
from stages.asr.decoding import decode
from stages.asr.mel import SAMPLE_RATE
from stages.asr.model import SpeechModel, load_model, save_model
from stages.asr.shards import Shards
from stages.params import load_params
from stages.runtime.errors import UserError
from stages.versioning.pins import OLDER_CLIPS, Repository, make_version, pinned_commits
from tests.support.demo import PATIENCE
from tests.support.pinned import isolate, other, push, start, tag, train
from tests.support.repository import commit, run
from tools.drive.inventory import out_objects

OLD, NEW = "tuned@v1.0.0", "tuned@v1.1.0"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def bytes_of(tmp_path_factory, tiny) -> dict[str, Path]:
    """Three models by the version that has their bytes."""
    folder = tmp_path_factory.mktemp("models")
    return {"pretrained": tiny, OLD: other(tiny, folder / "old", 1.5), NEW: other(tiny, folder / "new", 2)}


@pytest.fixture(scope="module")
def origin(tmp_path_factory, bytes_of) -> Path:
    """A repository with two pins, the newer one also in its workspace, pushed; do not change it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, tmp_path_factory.mktemp("origin-site"))
        folder = start(tmp_path_factory.mktemp("origin") / "repo", bytes_of["pretrained"])
        for version, wer, *clips in ((OLD, 12.3, 120, OLDER_CLIPS), (NEW, 4.5, 3000)):
            train(folder, bytes_of[version], wer, *clips)
            tag(folder, version)
        push(folder)
    return folder


@pytest.fixture
def clone(origin, tmp_path) -> Path:
    run(tmp_path, "git", "clone", "-q", str(origin), "clone")
    return tmp_path / "clone"


@pytest.fixture
def whole(origin, tmp_path) -> Path:
    """The repository with its workspace and cache, to change."""
    return shutil.copytree(origin, tmp_path / "whole", symlinks=True)


def same(model: SpeechModel, folder: Path) -> bool:
    expected = load_model(folder).whisper.state_dict()
    return all(torch.equal(weights, expected[name]) for name, weights in model.whisper.state_dict().items())


def remote(folder: Path, url: object) -> None:
    """Name another default remote, or none."""
    run(folder, "git", "checkout", "-q", ".dvc/config")
    path = folder / ".dvc/config"
    kept = path.read_text().partition("[core]\n    remote")[0]
    path.write_text(kept + (f"[core]\n    remote = store\n['remote \"store\"']\n    url = {url}\n" if url else ""))


# Choosing


def test_pins_and_the_workspace_can_be_chosen_in_a_fresh_clone(clone, bytes_of):
    run(clone, "dvc", "pull")
    models = repository_models(clone, 4)
    assert [version.name for version in models.versions] == [NEW, OLD, "tuned", "pretrained"]
    new, old, workspace, pretrained = models.versions
    assert (old.wer, old.wer_low, old.wer_high, old.data) == (12.3, 11.3, 13.3, "synthetic, 120 clips")
    assert (new.wer, new.data, new.untrained) == (4.5, "synthetic, 3,000 clips", False)
    assert (workspace.wer, workspace.commit, pretrained.untrained) == (4.5, "", True)
    assert new.commit == run(clone, "git", "rev-parse", f"{NEW}^{{commit}}").strip()
    assert all(same(models.load(name), folder) for name, folder in bytes_of.items())
    assert models.load("tuned") is models.load(NEW)  # the same bytes


def test_pins_come_from_the_remote_at_first_choice_however_many_ask(clone, bytes_of):
    models = repository_models(clone, 2)
    assert [version.name for version in models.versions] == [NEW, OLD]
    with ThreadPoolExecutor(50) as pool:
        answers = {name: [pool.submit(models.load, name) for _ in range(25)] for name in (NEW, OLD)}
    for name, given in answers.items():
        assert len({id(answer.result()) for answer in given}) == 1
        assert same(given[0].result(), bytes_of[name])


@contextmanager
def slow_store(folder: Path, size: int) -> Iterator[tuple[str, threading.Event]]:
    """A remote by HTTP that stops in the middle of its file of ``size`` bytes, until it may go on."""
    go_on = threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:
            data = source.read()
            outputfile.write(data[: len(data) // 2])
            outputfile.flush()
            if len(data) == size:
                go_on.wait(PATIENCE)
            outputfile.write(data[len(data) // 2 :])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", go_on
        finally:
            go_on.set()
            server.shutdown()
            thread.join()


def test_whoever_waits_for_a_pin_sees_how_much_of_it_has_come(clone, origin, bytes_of, tmp_path):
    size = (bytes_of[OLD] / "model.safetensors").stat().st_size
    settings = load_params(clone / "params.yaml").app
    transcriber = Transcriber(repository_models(clone, 1), settings, video.fetch_audio, Turns(1))
    soundfile.write(tmp_path / "silence.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    with slow_store(origin.parent / "store", size) as (url, go_on):
        remote(clone, url)
        seen = []
        for progress in transcriber.transcribe([OLD], tmp_path / "silence.wav"):
            if progress.step == "fetching" and progress.downloaded > 0:
                seen.append(progress.downloaded)
                line = progress_html(progress, "sv")
                go_on.set()
    assert 0 < seen[0] < 1  # how much depends on which files come first
    assert f"{round(100 * seen[-1])} %" in line and f'value="{seen[-1]:.3f}"' in line
    assert transcriber.models.fetched == {}
    assert same(transcriber.models.load(OLD), bytes_of[OLD])


def test_pins_that_nobody_uses_leave_their_folder_and_come_back(fetched, bytes_of):
    models = repository_models(fetched, 1)
    folder = fetched / ".dvc/tmp/app"
    models.load(OLD)
    (old,) = folder.iterdir()
    (folder / "tmpbroken").mkdir()
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    models.load(OLD)
    assert old.stat().st_mtime > 0, "what is used is not old"
    models.load(NEW)
    assert old in folder.iterdir() and not (folder / "tmpbroken").exists()
    os.utime(old, (0, 0))
    repository_models(fetched, 1).load(NEW)
    assert not old.exists() and len(list(folder.iterdir())) == 1
    assert same(models.load(OLD), bytes_of[OLD])


def test_offline_after_fetch(clone, bytes_of):
    run(clone, "dvc", "fetch", "--all-tags", "models/tuned")
    remote(clone, None)
    assert same(repository_models(clone, 1).load(OLD), bytes_of[OLD])


def test_without_a_remote_the_error_says_how_and_a_later_try_works(clone, origin, bytes_of):
    models = repository_models(clone, 1)
    remote(clone, None)
    with pytest.raises(UserError, match=rf"{OLD} is not in DVC's cache.*`dvc remote add --default.*--all-tags models/"):
        models.load(OLD)
    remote(clone, origin.parent / "store")
    assert same(models.load(OLD), bytes_of[OLD])


def test_a_damaged_object_is_not_taken_and_a_later_try_works(clone, origin, tmp_path, bytes_of):
    store = shutil.copytree(origin.parent / "store", tmp_path / "store")
    remote(clone, store)
    right = (bytes_of[OLD] / "model.safetensors").read_bytes()
    (stored,) = [path for path in store.rglob("*") if path.is_file() and path.read_bytes() == right]
    stored.chmod(0o644)
    stored.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    models = repository_models(clone, 1)
    with pytest.raises(UserError, match=r"could not be fetched from the remote store .*`make push`"):
        models.load(OLD)
    stored.write_bytes(right)
    assert same(models.load(OLD), bytes_of[OLD])


def test_a_pin_whose_list_leads_out_of_its_folder_writes_nothing(fetched, tmp_path):
    models, before = repository_models(fetched, 1), everything(tmp_path)
    inside = ["..", ".", "", "a//b", "a/../b", "a\\b", "a\x00b", "model.safetensors/b"]
    for name in ["../../../../../app/__init__.py", "/etc/x", *inside]:
        forge_lists(fetched, lambda entries, name=name: entries[0].update(relpath=name))
        with pytest.raises(UserError, match=r"names .*, which is no file within a folder: nothing was written"):
            models.load(OLD)
        with pytest.raises(UserError, match="no file within a folder"), Repo(str(fetched)) as repo:
            [out_objects(repo, out) for out in repo.index.outs]  # as push and pull read them
    assert {path for path in everything(tmp_path) - before if ".dvc/tmp" not in path} == set()
    assert list(fetched.glob(".dvc/tmp/app/*")) == []


def test_a_pin_with_an_object_id_that_is_a_path_is_told(fetched):
    forge_lists(fetched, lambda entries: entries[0].update(md5="../../../../secret"))
    with pytest.raises(UserError, match=r"has no valid object id in DVC's files: '../../../../secret'"):
        repository_models(fetched, 1).load(OLD)


def test_a_pin_whose_list_is_no_list_is_told(fetched):
    models = repository_models(fetched, 1)
    for text in ("[]]", "{}", '["a"]', '[{"md5": "0"}]', '[{"relpath": 5}]', "[" * 100_000):
        for path in (fetched / ".dvc/cache").rglob("*.dir"):
            forge(path, text)
        with pytest.raises(UserError, match=r"its list of files .* is damaged: have whoever made it run"):
            models.load(OLD)


@pytest.fixture
def fetched(clone) -> Path:
    """A clone with every model in its cache."""
    run(clone, "dvc", "fetch", "--all-tags", "models/tuned")
    return clone


def forge_lists(clone: Path, change: Callable[[list[dict]], None]) -> None:
    """Change the lists of folders in the cache."""
    for path in (clone / ".dvc/cache").rglob("*.dir"):
        entries = json.loads(path.read_text())
        change(entries)
        forge(path, json.dumps(entries))


def forge(path: Path, text: str) -> None:
    """Put another text into the cache; DVC believes what it finds there read-only."""
    path.chmod(0o644)
    path.write_text(text)
    path.chmod(0o444)


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_a_remote_that_is_not_there_is_told(clone, tmp_path):
    remote(clone, tmp_path / "nowhere")
    with pytest.raises(UserError, match="could not be fetched from the remote store"):
        repository_models(clone, 1).load(OLD)


def test_a_pin_without_its_commit_is_listed_and_told(clone):
    broken = f"object {'1' * 40}\ntype commit\ntag tuned@v3.0.0\ntagger a <a@example.com> 1700000000 +0000\n\nbroken\n"
    (clone / "broken").write_text(broken)
    written = run(clone, "git", "hash-object", "-t", "tag", "-w", "--literally", "broken").strip()
    run(clone, "git", "update-ref", "refs/tags/tuned@v3.0.0", written)
    models = repository_models(clone, 1)
    assert (models.versions[0].name, models.versions[0].wer, models.versions[0].data) == ("tuned@v3.0.0", None, "")
    with pytest.raises(UserError, match=r"1111111 is not in this clone: run `git fetch --tags`"):
        models.load("tuned@v3.0.0")


def test_an_empty_file_in_a_pin_is_not_measured(clone):
    for name in ("metrics/evaluate/tuned.json", "params.yaml"):
        (clone / name).write_text("")
    commit(clone)
    tag(clone, "tuned@v2.0.0")
    first, second, _ = Repository(clone).versions()
    assert (first.name, str(first)) == ("tuned@v2.0.0", "WER not measured, 3,000 clips")
    assert (second.name, second.wer) == (NEW, 4.5)


def test_a_pin_from_before_there_was_a_model_is_told(clone):
    run(clone, "git", "rm", "-q", "dvc.lock")
    commit(clone)
    tag(clone, "tuned@v2.0.0")
    with pytest.raises(UserError, match=r"tuned@v2\.0\.0: DVC tracks no model tuned"):
        repository_models(clone, 1).load("tuned@v2.0.0")


def test_tags_as_the_registry_reads_them(tmp_path):
    run(tmp_path, "git", "init", "-q")
    assert pinned_commits(tmp_path) == {}
    commit(tmp_path)
    names = ["tuned@v1.2.0", "tuned@v1.10.0", "tuned@v2.0.0-rc.1", "tuned@v3.0.0#4", "tuned@v4.0.0", "tuned@v4.0.0!"]
    tag(tmp_path, *names, "tuned#prod", "tuned@v1", "tuned@1.0.0", "tuned@latest", "other@v1.0.0", "v1.0.0")
    run(tmp_path, "git", "tag", "tuned@v9.0.0")  # lightweight
    assert list(pinned_commits(tmp_path)) == ["tuned@v3.0.0", "tuned@v2.0.0-rc.1", "tuned@v1.10.0", "tuned@v1.2.0"]
    assert len(set(pinned_commits(tmp_path).values())) == 1


def test_what_was_deprecated_is_not_offered(tmp_path, monkeypatch):
    run(tmp_path, "git", "init", "-q")
    commit(tmp_path)
    for day, name in enumerate(["tuned@v1.0.0", "tuned@deprecated", "tuned@v1.1.0"], start=1):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2026-01-0{day}T12:00:00")
        tag(tmp_path, name)
    assert list(pinned_commits(tmp_path)) == ["tuned@v1.1.0"]


def test_a_pin_made_while_the_app_runs_is_offered(whole):
    models = repository_models(whole, 1)
    tag(whole, "tuned@v1.2.0")
    assert models.versions[0].name == "tuned@v1.2.0"


def test_nothing_to_choose_is_told(tmp_path):
    with pytest.raises(UserError, match="run `make repro` or `make pull`"):
        repository_models(tmp_path, 1)


def test_an_unknown_name_is_told_with_those_there_are(clone):
    with pytest.raises(UserError, match=rf"no model tuned@v7: choose one of {NEW}, {OLD}"):
        repository_models(clone, 1).load("tuned@v7")


def test_what_git_refuses_is_told(clone):
    (clone / ".git/config").write_text("[broken")
    with pytest.raises(UserError, match="bad config"):
        Repository(clone).versions()


@pytest.mark.parametrize(
    ("params", "data"),
    [
        (
            "{corpus: common_voice, common_voice: {archive: cv-corpus-25.0-sv-SE.tar.gz}}",
            "cv-corpus-25.0-sv-SE, 7 clips",
        ),
        (
            "{corpus: common_voice, common_voice: {archive: null, release: '25.0', locale: sv-SE}}",
            "cv-corpus-25.0-sv-SE, 7 clips",
        ),
        ("{corpus: folder, folder: {path: /home/anna/recordings}}", "recordings, 7 clips"),
        ("{corpus: hub}", "hub, 7 clips"),
        ("{corpus: common_voice}", "common_voice, 7 clips"),
        ("[not, a, section]", "7 clips"),
        ("[", "7 clips"),
    ],
)
def test_data_is_what_params_call_it_also_those_of_an_older_version(params, data):
    assert make_version("tuned", "", None, '{"clips": 7}', f"download: {params}\n").data == data


# Loading


def test_the_latest_used_stay_in_memory_and_the_others_go(whole):
    models = repository_models(whole, 2)
    loaded = {name: weakref.ref(models.load(name).whisper) for name in (OLD, NEW)}
    assert models.load(OLD).whisper is loaded[OLD]()
    models.load("pretrained")
    assert loaded[NEW]() is None
    assert models.load(OLD).whisper is loaded[OLD]()


def test_a_model_trained_again_is_noticed(whole, bytes_of):
    models = repository_models(whole, 1)
    before = models.load("tuned")
    assert models.load("tuned") is before
    shutil.rmtree(whole / "models/tuned")
    with pytest.raises(UserError, match="no model tuned: choose one of"):
        models.load("tuned")
    shutil.copytree(bytes_of[OLD], whole / "models/tuned")
    assert same(models.load("tuned"), bytes_of[OLD])
    assert models.load("tuned") is models.load(OLD)


def test_a_broken_model_is_told_and_a_later_try_works(whole, bytes_of):
    weights = whole / "models/tuned/model.safetensors"
    right = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(right[:1000])
    models = repository_models(whole, 1)
    with pytest.raises(UserError, match="is not a Whisper model"):
        models.load("tuned")
    weights.write_bytes(right)
    assert same(models.load("tuned"), bytes_of[NEW])


def test_several_may_decode_with_one_model_at_once(talking, shards_folder, tmp_path):
    save_model(talking, tmp_path / "model")
    model = folder_models(tmp_path / "model", 1).load("model")
    expected = decode(model, Shards(shards_folder), 1)
    with ThreadPoolExecutor(4) as pool:
        heard = list(pool.map(lambda _: decode(model, Shards(shards_folder), 1), range(4)))
    assert heard == [expected] * 4 and len(set(expected)) > 1


# A Space's


@pytest.fixture
def published(tiny, tmp_path) -> Path:
    return shutil.copytree(tiny, tmp_path / "viska-sv")


@pytest.mark.parametrize(("own", "wer"), [(None, 4.5), (9.5, 9.5)])
def test_a_space_has_one_model_with_what_its_card_says(published, own, wer):
    """The first WER, or the one that is marked as decoded the way the demo decodes."""
    task, data = "automatic-speech-recognition", "synthetic, 3,000 clips"
    results = [
        EvalResult(
            task,
            "viska",
            data,
            kind,
            value,
            metric_args={"low": value - 1, "high": value + 1} | ({"context": "clip"} if value == own else {}),
        )
        for kind, value in (("cer", 1.5), ("wer", 4.5), ("wer", 9.5))
    ]
    card = ModelCardData(language="sv", model_name="viska", eval_results=results)
    (published / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n# viska\n")
    assert ModelCard.load(published / "README.md").data.eval_results
    models = folder_models(published, 1)
    (version,) = models.versions
    assert (version.name, version.data, version.untrained) == ("viska-sv", data, True)
    assert (version.wer, version.wer_low, version.wer_high) == (wer, wer - 1, wer + 1)
    assert same(models.load("viska-sv"), published)


@pytest.mark.parametrize("readme", [None, "", "# no metadata", "---\nlanguage: [\n---\n", "---\nmodel-index: 3\n---\n"])
def test_a_space_without_a_card_has_its_model(published, readme):
    if readme is not None:
        (published / "README.md").write_text(readme)
    (version,) = folder_models(published, 1).versions
    assert (version.wer, version.wer_low, version.data) == (None, None, "")
    assert str(version) == "WER not measured, untrained"


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        folder_models(tmp_path, 1)


def test_a_model_that_is_not_told_what_to_hear_is_named_with_the_remedy(published):
    """As OpenAI's own folder comes."""
    path = published / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"language": None, "task": None}))
    with pytest.raises(UserError, match=r'generation_config\.json lacks language, task: .*"language": "sv"'):
        folder_models(published, 1).load("viska-sv")

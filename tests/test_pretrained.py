import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from stages.asr.decoding import prompt_tokens
from stages.asr.model import folder_digest, load_model
from stages.params import load_params
from stages.pretrained import pretrained, set_language, train_tokenizer
from stages.runtime.errors import UserError
from tests.support.hub import serve, sha256
from tests.support.material import ROOT, TINY, speech, write_params, write_shards
from tests.support.process import said_lines

COMMIT, BINARY = "0123456789abcdef0123456789abcdef01234567", "f" * 40
UNFETCHED = "c" * 40  # a commit that no test fetches


@pytest.fixture
def make(settings, shards_folder, tmp_path):
    """Call with overrides: makes a base model; returns its folder."""

    def call(name: str = "model", train: Path = shards_folder, **whisper: object) -> Path:
        values = {f"whisper.{key.replace('__', '.')}": value for key, value in whisper.items()}
        section = load_params(settings(TINY | values)).whisper
        pretrained(section, train, tmp_path / name)
        return tmp_path / name

    return call


def test_the_same_seed_gives_the_same_bytes(make, tiny):
    torch.rand(7)  # what was drawn before does not matter
    assert folder_digest(make("same")) == folder_digest(tiny)
    assert sha256(make("other", scratch__seed=2) / "model.safetensors") != sha256(tiny / "model.safetensors")


def test_scratch_has_the_shape_that_was_asked_for(make):
    read = load_model(make(scratch__d_model=12, scratch__layers=2, scratch__heads=3, scratch__seconds=4))
    config = read.whisper.config
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (12, 2, 2)
    assert (config.encoder_attention_heads, config.decoder_attention_heads, config.num_mel_bins) == (3, 3, 80)
    assert config.encoder_ffn_dim == config.decoder_ffn_dim == 48
    assert read.window == 400
    assert read.extractor.nb_max_frames == 400
    assert (read.context, read.untrained) == ("full", True)


def test_scratch_hears_as_many_mel_bins_as_the_shards_have(make, tmp_path):
    train = write_shards(tmp_path / "train", {"a": speech(0.5)}, n_mels=128)
    assert load_model(make(train=train)).whisper.config.num_mel_bins == 128


def test_scratch_knows_whispers_languages_and_tasks(model):
    ids = model.tokenizer.get_vocab()
    words = "endoftext startoftranscript translate transcribe startoflm startofprev nospeech notimestamps 0.00 2.00"
    specials = [f"<|{name}|>" for name in (*words.split(), *LANGUAGES)]
    assert {token: ids.get(token) for token in specials if token not in ids} == {}
    assert len({ids[token] for token in specials}) == len(specials)
    assert "<|2.02|>" not in ids
    assert max(ids.values()) == len(model.tokenizer) - 1 == model.whisper.config.vocab_size - 1
    config = model.whisper.generation_config
    assert config.lang_to_id == {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES}
    assert config.task_to_id == {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    assert model.tokenizer.prefix_tokens == prompt_tokens(model)


def test_a_timestamp_begins_as_the_position_that_it_names(model):
    ids, positions = model.tokenizer.get_vocab(), model.whisper.model.encoder.embed_positions.weight
    stamps = model.whisper.model.decoder.embed_tokens.weight[[ids[f"<|{place / 50:.2f}|>"] for place in range(100)]]
    scale = 2**0.5 * model.whisper.config.init_std
    assert torch.allclose(stamps, scale * positions, rtol=0, atol=1e-5)  # of a float32 sine of at most 100


@pytest.mark.parametrize("text", ["Åsa köper ägg på ön", "naïve 東京 🎈", 'han sa "hej",  två  blanksteg', ""])
@pytest.mark.parametrize("merges", [0, 20])
def test_any_text_survives_the_tokenizer(text, merges):
    tokenizer = train_tokenizer(["hej på dig", "åsa på ön"], merges, 2)
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_merges_are_learned_from_the_texts():
    texts = ["på ön på ön på ön"]
    letters, pieces = train_tokenizer(texts, 0, 2), train_tokenizer(texts, 5, 2)
    assert len(pieces) == len(letters) + 5
    assert len(letters("på ön", add_special_tokens=False).input_ids) == len("på ön".encode())
    assert len(pieces("på ön", add_special_tokens=False).input_ids) < len("på ön".encode())
    assert len(pieces("kex", add_special_tokens=False).input_ids) == 3


def test_language_and_task_are_set_in_every_place(make):
    read = load_model(make(language="de", task="translate"))
    assert (read.whisper.generation_config.language, read.whisper.generation_config.task) == ("de", "translate")
    start = ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>"]
    assert read.tokenizer.convert_ids_to_tokens(prompt_tokens(read)) == start
    assert read.tokenizer.convert_ids_to_tokens(read.tokenizer.prefix_tokens) == start


def test_an_unknown_language_is_named(make, tmp_path):
    with pytest.raises(UserError, match=r"whisper\.language: the base model does not know 'xx'"):
        make(language="xx")
    assert not (tmp_path / "model").exists()


def test_a_multilingual_base_whose_generation_config_is_too_old_is_told_so(model):
    del model.whisper.generation_config.lang_to_id
    with pytest.raises(UserError, match="use a multilingual Whisper"):  # it has as few tokens as an English one
        set_language(model, "sv", "transcribe")
    model.whisper.config.vocab_size = 51_865
    with pytest.raises(UserError, match=r"its generation_config\.json names no languages"):
        set_language(model, "sv", "transcribe")


def test_a_folder_with_the_right_digest_is_a_base(make, tiny, model):
    digest = folder_digest(tiny)
    for revision in (digest, digest[:12]):
        read = load_model(make(base=str(tiny), revision=revision, language="de"))
        theirs = model.whisper.state_dict()
        assert all(torch.equal(weights, theirs[name]) for name, weights in read.whisper.state_dict().items())
        assert read.untrained
        assert read.whisper.generation_config.language == "de"


def test_another_digest_is_refused_and_the_right_one_told(make, tiny):
    with pytest.raises(UserError, match=rf"{tiny} has the digest {folder_digest(tiny)}: set whisper\.revision"):
        make(base=str(tiny), revision="0" * 64)


def test_a_missing_folder_is_named(make, tmp_path):
    with pytest.raises(UserError, match=rf"whisper\.base: {tmp_path / 'gone'} is not a folder"):
        make(base=str(tmp_path / "gone"), revision="0" * 64)


def test_features_that_the_base_does_not_hear_are_refused(make, tiny, tmp_path):
    train = write_shards(tmp_path / "train", {"a": speech(0.5)}, n_mels=128)
    with pytest.raises(
        UserError, match=rf"{train} has 128 mel bins, and the model expects 80: set featurize\.n_mels: 80"
    ):
        make(train=train, base=str(tiny), revision=folder_digest(tiny))


def test_clips_beyond_the_window_of_scratch_are_refused(make, tmp_path):
    train = write_shards(tmp_path / "train", {"long": speech(2.5)})
    with pytest.raises(UserError, match=r"clip long .*raise whisper\.scratch\.seconds"):
        make(train=train)


def test_the_old_model_stays_where_a_new_one_cannot_be_had(make, tmp_path):
    digest = folder_digest(make())
    with pytest.raises(UserError):
        make(language="xx")
    assert folder_digest(tmp_path / "model") == digest


@dataclass
class Fetch:
    """How ``python -m stages pretrained`` on the stand-in of the Hub ended."""

    status: int
    lines: list[str]
    model: Path
    asked: list[str]


COMMANDS = """
import contextlib, io, json, sys
from stages.pretrained import main
from stages.runtime.command import invoke, report_error
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            status = invoke(lambda: main, json.loads(line))
        except Exception as error:
            status = report_error(error)
    print(status, flush=True)
"""


@pytest.fixture(scope="module")
def fetch(tiny, shards_folder, tmp_path_factory):
    """Call with a base and its revision: fetches it from a Hub that has the tiny model as team/tiny.

    In one other process for all, for an address of the Hub is read once.
    """
    folder = tmp_path_factory.mktemp("fetch")
    commit, binary = (Path(shutil.copytree(tiny, folder / name)) for name in ("commit", "binary"))
    (commit / "README.md").write_text("not wanted")
    (commit / "pytorch_model.bin").write_bytes(b"not wanted")
    (binary / "model.safetensors").rename(binary / "pytorch_model.bin")
    env = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), "")
    env |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": folder}
    with (
        serve({"team/tiny": {COMMIT: commit, BINARY: binary, UNFETCHED: commit}}) as hub,
        (folder / "log").open("w+") as log,
    ):
        env = os.environ | env | {"HF_ENDPOINT": hub.url}
        with subprocess.Popen([sys.executable, "-c", COMMANDS], env=env, stderr=log, **pipes) as process:

            def call(base: str, revision: str, model: Path, **broken: int) -> Fetch:
                hub.broken = broken
                params = write_params(folder / "params.yaml", {"whisper.base": base, "whisper.revision": revision})
                arguments = ["--params", params, "--train", shards_folder, "--model", model]
                hub.asked.clear()
                begin = (folder / "log").stat().st_size
                process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
                process.stdin.flush()
                status = int(process.stdout.readline())
                said = (folder / "log").read_bytes()[begin:].decode()
                return Fetch(status, said_lines(said), model, list(hub.asked))

            yield call
            process.kill()  # its own end takes longer


def test_a_model_comes_from_the_hub_at_its_commit_and_from_the_cache_again(fetch, tiny, tmp_path):
    first = fetch("team/tiny", COMMIT, tmp_path / "model")
    assert (first.status, first.lines) == (0, [])
    assert sha256(first.model / "model.safetensors") == sha256(tiny / "model.safetensors")
    digest = folder_digest(first.model)
    asked = [request for request in first.asked if "team/tiny" in request]
    assert len(asked) > 5
    assert all(f"/{COMMIT}" in request for request in asked)
    assert any("model.safetensors" in request for request in asked)
    assert not [request for request in asked if "README" in request or ".bin" in request]
    again = fetch("team/tiny", COMMIT, tmp_path / "model")
    assert (again.status, again.lines) == (0, [])
    assert not [request for request in again.asked if "/store/" in request]
    assert folder_digest(again.model) == digest


@pytest.mark.parametrize(
    ("base", "revision", "complaint", "broken"),
    [
        ("team/tiny", "e" * 40, f"whisper.base: team/tiny at {'e' * 40} cannot be fetched: .*Revision Not Found", {}),
        ("team/gone", COMMIT, f"whisper.base: team/gone at {COMMIT} cannot be fetched: .*Repository Not Found", {}),
        ("team/tiny", BINARY, f"whisper.base: team/tiny at {BINARY} .*safetensors", {}),
        ("team/tiny", UNFETCHED, f"whisper.base: team/tiny at {UNFETCHED} cannot be fetched: .", {"resolve": 0}),
    ],
    ids=["unknown revision", "unknown repository", "no safetensors", "broken off"],
)
def test_what_cannot_be_fetched_is_told_in_one_line(fetch, tmp_path, base, revision, complaint, broken):
    result = fetch(base, revision, tmp_path / "model", **broken)
    assert result.status == 1
    assert len(result.lines) == 1
    assert re.match(f"Error: {complaint}", result.lines[0])
    assert not result.model.exists()

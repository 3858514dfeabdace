"""``python -m tools.convert``: what another engine says of a converted model is what the model itself would say."""

import re
import subprocess
import sys
from dataclasses import replace

import ctranslate2
import numpy as np
import onnxruntime
import pytest
import torch

from stages.asr.decoding import prompt_tokens
from stages.asr.mel import MAX_FRAMES, log_mel, pad_or_trim
from stages.asr.model import SpeechModel, load_model, save_model
from stages.params import load_params
from stages.pretrained import pretrained
from stages.runtime.errors import UserError
from tests.support.material import ROOT, TINY, speech, write_params, write_raw
from tools.convert.__main__ import main
from tools.convert.ctranslate import faster_whisper_recogniser, write_ctranslate
from tools.convert.engines import ENGINES
from tools.convert.ggml import FILE, text_pieces, whisper_cpp_recogniser, write_ggml
from tools.convert.onnx_files import DECODER, onnx_recogniser, write_onnx
from tools.convert.vocabulary import has_whisper_shape, in_whisper_shape

LETTERS = "abcdefghijklmnopqrstuvwxyz"  # of a byte each, so that any order of them is text
SOUNDS = [speech(seconds, seed) for seconds, seed in ((0.8, 1), (1.7, 2), (2.6, 3))]


@pytest.fixture(scope="module")
def wide_window(tmp_path_factory, shards_folder) -> SpeechModel:
    """A tiny Whisper of 30 s whose text, in letters, and its end depend on the clip, for its weights are large."""
    folder = tmp_path_factory.mktemp("convert")
    settings = TINY | {"whisper.scratch.d_model": 64, "whisper.scratch.seconds": 30}
    pretrained(load_params(write_params(folder / "params.yaml", settings)).whisper, shards_folder, folder / "model")
    model = load_model(folder / "model")
    generator, end = torch.Generator().manual_seed(4), model.whisper.generation_config.eos_token_id
    said = {*model.tokenizer(LETTERS, add_special_tokens=False).input_ids, end}
    with torch.no_grad():
        for name, weights in model.whisper.named_parameters():
            if "norm" not in name and "encoder.embed_positions" not in name:
                weights.copy_(torch.randn(weights.shape, generator=generator) * 0.3)
        rows = model.whisper.model.decoder.embed_tokens.weight
        rows[[token for token in range(len(rows)) if token not in said]] *= 0.1
        rows[end] *= 2
    return model


def test_a_wider_vocabulary_says_the_same(wide_window):
    wide = in_whisper_shape(wide_window)
    assert has_whisper_shape(wide) and not has_whisper_shape(wide_window)
    assert in_whisper_shape(wide) is wide
    text = "Åsa köper ägg - ' (två)"
    prefix = len(prompt_tokens(wide))
    tokens = wide.tokenizer("Åsa köper ägg").input_ids
    assert tokens[:prefix] == prompt_tokens(wide)
    assert wide.tokenizer.decode(wide.tokenizer(text).input_ids, skip_special_tokens=True) == text
    mel = features(SOUNDS[0])
    before, after = (
        model.whisper(input_features=mel, decoder_input_ids=torch.tensor([prompt_tokens(model)])).logits[0, -1]
        for model in (wide_window, wide)
    )
    n_text = wide_window.whisper.generation_config.eos_token_id
    shift = len(after) - len(before)
    torch.testing.assert_close(torch.cat([after[:n_text], after[n_text + shift :]]), before)
    assert after[n_text : n_text + shift].max() < before.max()


def test_what_is_no_vocabulary_of_ours_is_refused(model):
    with pytest.raises(UserError, match="multilingual Whisper"):
        in_whisper_shape(model)  # its timestamps end at 2 s


def features(samples: np.ndarray) -> torch.Tensor:
    """The full window: (1, n_mels, n_frames) float32."""
    return torch.from_numpy(pad_or_trim(log_mel(samples, 80).astype(np.float32), MAX_FRAMES))[None]


@torch.inference_mode()
def check_likely(model: SpeechModel, samples: np.ndarray, tokens: list[int], bound: float) -> None:
    """Each token is the model's own likeliest after those before it, but for a difference of rounding.

    bound: of logits, whose standard deviation is several hundred times as large.
    """
    assert tokens
    ids = torch.tensor([prompt_tokens(model) + tokens])
    logits = model.whisper(input_features=features(samples), decoder_input_ids=ids).logits[0, 3:-1]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert (logits.max(dim=1).values - chosen).max() <= bound


def check_texts(model: SpeechModel, recognise, bound: float) -> None:
    """An engine's texts are the model's own, and there is something to tell them by."""
    texts = [recognise(samples) for samples in SOUNDS]
    assert len(set(texts)) == len(texts)
    for samples, text in zip(SOUNDS, texts, strict=True):
        tokens = model.tokenizer(text, add_special_tokens=False).input_ids
        check_likely(model, samples, tokens, bound)


def test_ctranslate2_says_what_the_model_says(wide_window, tmp_path):
    write_ctranslate(wide_window, tmp_path / "converted", "float32")
    converted = ctranslate2.models.Whisper(str(tmp_path / "converted"), device="cpu")
    assert converted.is_multilingual and converted.num_languages == 100
    wide = in_whisper_shape(wide_window)

    def recognise(samples: np.ndarray) -> str:
        window = ctranslate2.StorageView.from_array(np.ascontiguousarray(features(samples)))
        (result,) = converted.generate(window, [prompt_tokens(wide)], beam_size=1)
        return wide.tokenizer.decode(result.sequences_ids[0])

    check_texts(wide_window, recognise, 0.01)


def test_faster_whisper_says_what_the_model_says(wide_window, tmp_path):
    write_ctranslate(wide_window, tmp_path / "converted", "float32")
    check_texts(wide_window, faster_whisper_recogniser(tmp_path / "converted", "sv", "transcribe"), 0.05)


def test_whisper_cpp_says_what_the_model_says(wide_window, tmp_path):
    write_ggml(wide_window, tmp_path)
    check_texts(wide_window, whisper_cpp_recogniser(tmp_path, "sv", "transcribe"), 0.1)


def test_onnx_says_what_the_model_says(wide_window, tmp_path):
    write_onnx(wide_window, tmp_path / "converted")
    check_texts(wide_window, onnx_recogniser(tmp_path / "converted", "sv", "transcribe"), 0.01)
    decoder = onnxruntime.InferenceSession(tmp_path / "converted" / DECODER)
    names = {part.name for part in decoder.get_inputs()}  # by which transformers.js calls it
    assert {"input_ids", "encoder_hidden_states", "use_cache_branch", "past_key_values.0.encoder.value"} <= names


def test_a_model_of_whispers_own_vocabulary_is_taken_as_it_is(wide_window, tmp_path):
    wide = in_whisper_shape(wide_window)
    save_model(wide, tmp_path / "plain")
    loaded = load_model(tmp_path / "plain")
    assert in_whisper_shape(loaded) is loaded
    pieces = text_pieces(loaded)
    assert len(pieces) == 50_257 and {bytes([value]) for value in range(256)} <= set(pieces)
    write_ggml(loaded, tmp_path / "loaded")
    write_ggml(wide_window, tmp_path / "widened")
    assert (tmp_path / "loaded" / FILE).read_bytes() == (tmp_path / "widened" / FILE).read_bytes()


@pytest.fixture
def convert(wide_window, tmp_path, monkeypatch, capsys):
    """Call with arguments in a folder with a tuned model: what the command prints."""
    save_model(wide_window, tmp_path / "models/tuned")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        main([*arguments, "--model", "tuned"], standalone_mode=False)
        return "".join(capsys.readouterr())

    return call


def test_the_command_converts_and_measures(convert, tmp_path):
    write_raw(tmp_path / "raw", {f"clip-{number}": samples for number, samples in enumerate(SOUNDS)})
    printed = convert("ggml", "--raw", "raw", "--clips", "2")
    assert "build/convert/ggml: tuned for whisper.cpp, float16, " in printed
    assert re.search(r"WER \d+\.\d\d % in whisper\.cpp, \d+\.\d\d % on the full window before: 2 clips", printed)


def test_the_command_goes_on_without_clips_to_measure(convert, tmp_path):
    assert "raw is not here: the WER in whisper.cpp was not measured" in convert("ggml", "--raw", "raw")
    before = (tmp_path / "build/convert/ggml" / FILE).read_bytes()
    assert "not measured" not in convert("ggml", "--clips", "0")
    assert (tmp_path / "build/convert/ggml" / FILE).read_bytes() == before
    with pytest.raises(UserError, match="build exists: give a new folder with --out"):
        convert("ggml", "--out", "build")
    with pytest.raises(UserError, match="--precision int8: ggml has float16"):
        convert("ggml", "--precision", "int8")


def test_a_shorter_window_is_refused(convert, model, tmp_path):
    save_model(model, tmp_path / "models/tuned")
    with pytest.raises(UserError, match=r"hears 2 s at once, and whisper\.cpp gives it 30 s: .*scratch.seconds: 30"):
        convert("ggml")
    assert not (tmp_path / "build").exists()


def test_onnx_runtime_is_kept_from_telling_its_makers(monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    program = 'import os, tools.convert; assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"'
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_an_engine_that_is_missing_is_named():
    engine = replace(ENGINES["ggml"], runners=("no_such_engine",))
    engine.check_installed(False)
    with pytest.raises(UserError, match=r"no-such-engine is not installed: run `pip install .*\[convert\]"):
        engine.check_installed(True)

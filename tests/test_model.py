import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, pipeline

from stages.asr.decoding import greedy_search
from stages.asr.model import CONFIG_KEY, check_fit, folder_digest, load_model, save_model
from stages.asr.shards import Shards
from stages.runtime.errors import UserError
from tests.support.material import sounds, speech, write_shards


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    """A copy of the tiny Whisper's folder to change."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def change_config(folder: Path, **values: object) -> None:
    change_json(folder / "config.json", **values)


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def nest_features(folder: Path, **values: object) -> None:
    """Write features as transformers 5 does, within processor_config.json alone."""
    features = json.loads((folder / "preprocessor_config.json").read_text()) | values
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": features}))
    (folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize(("context", "untrained"), [("clip", False), ("full", True)])
def test_a_saved_model_comes_back(model, tmp_path, context, untrained):
    model.context, model.untrained, model.margin = context, untrained, 50
    save_model(model, tmp_path)
    read = load_model(tmp_path)
    assert (read.context, read.untrained, read.margin) == (context, untrained, 50)
    assert not read.whisper.training
    assert read.window == 200
    theirs = read.whisper.state_dict()
    assert all(torch.equal(weights, theirs[name]) for name, weights in model.whisper.state_dict().items())
    assert read.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert (read.whisper.generation_config.language, read.whisper.generation_config.task) == ("sv", "transcribe")


def test_saving_again_gives_the_same_bytes(model, tmp_path):
    for name in "ab":
        save_model(model, tmp_path / name)
        model = load_model(tmp_path / name)
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")


def test_overrides_reach_the_layers(tiny):
    read = load_model(tiny, dropout=0.25, encoder_layerdrop=0.5)
    assert read.whisper.model.encoder.layers[0].dropout == 0.25
    assert read.whisper.model.encoder.layerdrop == 0.5


def test_transformers_alone_reads_and_runs_the_folder(talking, tmp_path):
    save_model(talking, tmp_path)
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    assert type(model.model.encoder).__module__.startswith("transformers.")
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path), device="cpu")
    for samples in sounds().values():
        heard = recognise(
            {"raw": samples, "sampling_rate": 16_000}, generate_kwargs={"num_beams": 1, "max_new_tokens": 30}
        )
        features = talking.extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
        assert heard["text"] == talking.tokenizer.decode(greedy_search(talking, features, 30)[0])


@pytest.mark.parametrize("note", [None, {}])
def test_a_model_that_does_not_say_is_decoded_at_the_full_window(copy, note):
    change_config(copy, **{CONFIG_KEY: note})
    read = load_model(copy)
    assert (read.context, read.untrained) == ("full", False)


def test_a_folder_without_safetensors_is_refused(copy, tmp_path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    for folder in (copy, tmp_path / "missing"):
        with pytest.raises(UserError, match=rf"{folder} contains no \*\.safetensors"):
            load_model(folder)


def drop_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: values for name, values in weights.items() if "encoder.layers.0.fc1" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


BROKEN = {
    "cut weights": cut,
    "weights without a layer": drop_layer,
    "more layers than weights": lambda folder: change_config(folder, encoder_layers=2),
    "weights of another width": lambda folder: change_config(folder, d_model=32),
    "another kind of model": lambda folder: change_config(folder, model_type="bert"),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a config that is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "no tokenizer": lambda folder: [path.unlink() for path in folder.glob("token*")],
    "no feature extractor": lambda folder: [path.unlink() for path in folder.glob("*processor*")],
}

DEEP = "[" * 100_000
BROKEN |= {
    f"{file} is {text[:9]}": lambda folder, file=file, text=text: (folder / file).write_text(text)
    for file in ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")
    for text in ("[]", '"a"', DEEP)
}
BROKEN |= {
    f"{key} {value}": lambda folder, key=key, value=value: change_config(folder, **{key: value})
    for key, values in {
        "viska": ("clip", [], {"context": "half"}, {"margin": -1}, {"margin": 1e9}, {"untrained": "no"}),
        "d_model": ("64", 0, 64.5, True, 10**9, None),
        "encoder_layers": (10**7, -1, [1]),
        "decoder_attention_heads": (0, 3, "2"),
        "encoder_ffn_dim": (10**9, 0),
        "vocab_size": (10**5, 10**12),
        "max_source_positions": (10**9, 0),
        "max_target_positions": (10**9,),
        "num_mel_bins": (0, 10**9),
        "decoder_start_token_id": (10**9, -1, "a"),
        "pad_token_id": (10**9,),
        "activation_function": ("os.system", 5),
        "quantization_config": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "x"),
        "dropout": ("a",),
        "init_std": ("a",),
        "id2label": ([1],),
    }.items()
    for value in values
}
BROKEN |= {
    f"features with {key} {value}": lambda folder, key=key, value=value: change_json(
        folder / "preprocessor_config.json", **{key: value}
    )
    for key, value in (("hop_length", 0), ("n_fft", 10**9), ("feature_size", 10**8), ("sampling_rate", 1))
}
BROKEN["features of transformers 5 with hop_length 320"] = lambda folder: nest_features(folder, hop_length=320)
BROKEN |= {
    f"generation with {key} {value}": lambda folder, key=key, value=value: change_json(
        folder / "generation_config.json", **{key: value}
    )
    for key, value in {
        "eos_token_id": "a",
        "max_length": 10**12,
        "no_timestamps_token_id": [1],
        "suppress_tokens": "abc",
        "lang_to_id": [1],
        "task_to_id": {"transcribe": "a"},
        "language": 5,
    }.items()
}
BROKEN["a config of 33 MB"] = lambda folder: (folder / "config.json").write_bytes(b" " * 33_000_000)


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_whole_whisper_is_refused_in_one_line(copy, name):
    BROKEN[name](copy)
    with pytest.raises(UserError, match=f"{copy}") as refusal:
        load_model(copy)
    assert "\n" not in str(refusal.value)


def test_what_a_generation_config_leaves_open_is_filled_in(copy):
    change_json(copy / "generation_config.json", max_length=None, suppress_tokens=[-1, 5], begin_suppress_tokens=[-1])
    read = load_model(copy).whisper
    assert read.generation_config.max_length == read.config.max_target_positions
    assert (read.generation_config.suppress_tokens, read.generation_config.begin_suppress_tokens) == ([5], [])


def test_what_transformers_5_saves_is_read(copy, model):
    nest_features(copy)
    assert load_model(copy).extractor.to_dict() == model.extractor.to_dict()


def test_a_config_does_not_choose_what_computes_attention(copy):
    change_config(copy, attn_implementation="nobody/attention", _attn_implementation="eager")
    assert load_model(copy).whisper.config._attn_implementation == "sdpa"


def test_features_with_other_mel_bins_are_refused(model, tmp_path):
    folder = write_shards(tmp_path / "test", {"a": speech(0.5)}, n_mels=128)
    with pytest.raises(
        UserError, match=rf"{folder} has 128 mel bins, and the model expects 80: set featurize.n_mels: 80"
    ):
        check_fit(model, Shards(folder), folder)


def test_a_clip_beyond_the_window_is_named(model, tmp_path):
    folder = write_shards(tmp_path / "test", {"a": speech(0.5), "c17": speech(2.6), "z": speech(2.1)})
    with pytest.raises(
        UserError, match=rf"clip c17 in {folder} lasts 2.6 s, and the model takes at most 2 s at once.*max_seconds"
    ):
        check_fit(model, Shards(folder), folder)


def test_clips_up_to_the_whole_window_fit(model, shards, shards_folder, tmp_path):
    check_fit(model, shards, shards_folder)
    check_fit(model, Shards(write_shards(tmp_path, {"whole": speech(2)})), tmp_path)


def test_the_digest_is_of_names_and_content(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    digests = [folder_digest(tmp_path), folder_digest(tmp_path)]
    (tmp_path / "b").write_text("3")
    digests.append(folder_digest(tmp_path))
    (tmp_path / "b").rename(tmp_path / "c")
    digests.append(folder_digest(tmp_path))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)

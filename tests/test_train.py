"""Training on a tiny model: what the settings do, and what is left behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from stages.asr.model import load_model, save_model
from stages.params import load_params
from stages.runtime.errors import UserError
from stages.train import Paths, train
from tests.support.material import speech, write_params, write_shards

SHORT = {
    "train.batch_size": 4,
    "train.learning_rate": 1e-2,
    "train.warmup_steps": 1,
    "train.max_steps": 4,
    "train.log_every": 1,
    "train.eval_every": 2,
    "train.save_every": 2,
}


@pytest.fixture
def trained(tmp_path, tiny, shards_folder):
    """Call with overrides: trains on the shared shards; returns the metrics and the paths."""

    def call(name: str = "run", train_shards: Path = shards_folder, pretrained: Path = tiny, **overrides):
        folder = tmp_path / name
        folder.mkdir()
        values = SHORT | {f"train.{key.replace('__', '.')}": value for key, value in overrides.items()}
        params = load_params(write_params(folder / "params.yaml", values))
        paths = Paths(
            train_shards=train_shards,
            validation=shutil.copytree(shards_folder, folder / "validation"),
            pretrained=pretrained,
            checkpoints=folder / "checkpoints",
            tuned=folder / "tuned",
            curves=folder / "curves",
            dropped=folder / "dropped.tsv",
            metrics=folder / "metrics.json",
            details=folder / "details.json",
        )
        return train(params.train, params.compute, params.checkpoints, paths), paths

    return call


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_training_changes_the_weights_and_says_how_it_went(trained, tiny):
    metrics, paths = trained()
    assert weights(paths.tuned) != weights(tiny)
    assert metrics == json.loads(paths.metrics.read_text()) | json.loads(paths.details.read_text())
    assert metrics["steps"] == 4 and metrics["best_step"] in (2, 4)
    assert [row[0] for row in rows(paths.curves / "training.tsv")] == ["step", "1", "2", "3", "4"]
    assert [row[0] for row in rows(paths.curves / "validation.tsv")] == ["step", "2", "4"]
    model = WhisperForConditionalGeneration.from_pretrained(paths.tuned)
    assert (model.generation_config.language, model.generation_config.task) == ("sv", "transcribe")


def test_same_settings_give_the_same_bytes_and_another_seed_does_not(trained):
    runs = [trained("a", dropout=0.1)[1], trained("b", dropout=0.1)[1], trained("c", dropout=0.1, seed=2)[1]]
    first, again, other = (weights(paths.tuned) for paths in runs)
    assert first == again != other
    assert (runs[0].curves / "training.tsv").read_bytes() == (runs[1].curves / "training.tsv").read_bytes()


@pytest.mark.parametrize(
    "overrides",
    [
        {"gradient_checkpointing": True},
        {"gradient_accumulation": 2},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {"max_steps": None, "epochs": 2},
        {"layerdrop": 0.5},
        {"attention_dropout": 0.1, "activation_dropout": 0.1},
        {"spec_augment__time_prob": 0.2, "spec_augment__feature_prob": 0.2},
    ],
    ids=lambda overrides: "-".join(overrides),
)
def test_each_knob_runs_to_the_end_with_a_finite_loss(trained, overrides):
    metrics, paths = trained(**overrides)
    assert metrics["steps"] == (6 if "epochs" in overrides else 4)
    losses = torch.tensor([float(row[1]) for row in rows(paths.curves / "training.tsv")[1:]])
    assert losses.isfinite().all() and len(losses) == metrics["steps"]


def test_gradient_checkpointing_changes_memory_and_no_number(trained):
    plain, saving = (trained(str(on), gradient_checkpointing=on)[1] for on in (False, True))
    assert rows(plain.curves / "training.tsv") == rows(saving.curves / "training.tsv")


def test_the_folder_says_which_context_it_was_trained_for(trained):
    for context in ("clip", "full"):
        _, paths = trained(context, context=context)
        model = load_model(paths.tuned)
        assert model.context == context and not model.untrained


def test_early_stopping_ends_a_run_that_does_not_improve(trained):
    metrics, _ = trained(learning_rate=1e-9, max_steps=20, patience=1)
    assert metrics["steps"] < 20


def test_the_last_weights_are_judged_too(trained):
    _, paths = trained(max_steps=3)
    assert [row[0] for row in rows(paths.curves / "validation.tsv")] == ["step", "2", "3"]


def test_long_labels_are_dropped_counted_and_listed(trained):
    metrics, paths = trained(max_label_tokens=16)
    dropped = rows(paths.dropped)[1:]
    assert dropped and metrics["dropped"] == {"label too long": len(dropped)}
    assert {row[2] for row in dropped} == {"label too long"}


def test_nothing_left_is_an_error_that_names_the_key(trained, tmp_path):
    long = write_shards(tmp_path / "train", {"a": speech(1.0)}, texts=("alldeles för många ord",))
    with pytest.raises(UserError, match=r"train\.max_label_tokens"):
        trained(train_shards=long, max_label_tokens=8)


def test_a_loss_that_is_no_number_stops_training(trained, tiny, tmp_path):
    model = load_model(tiny)
    model.whisper.model.decoder.layer_norm.bias.data[0] = torch.nan
    save_model(model, tmp_path / "broken")
    with pytest.raises(UserError, match=r"loss is nan at step 1: lower train\.learning_rate"):
        trained(pretrained=tmp_path / "broken")


def test_features_with_other_mels_are_refused(trained, tmp_path):
    wide = write_shards(tmp_path / "wide", {"a": speech(1.0)}, n_mels=128)
    with pytest.raises(UserError, match=r"128 mel bins, and the model expects 80: set featurize\.n_mels: 80"):
        trained(train_shards=wide)


def test_gradients_do_not_depend_on_the_order_of_threads(trained, tiny):
    """torch adds into an embedding from several threads at once, unless it is told to be deterministic."""
    threads = torch.get_num_threads()
    trained()  # which tells it
    model = load_model(tiny).whisper.train()
    torch.set_num_threads(4)
    try:
        features, labels = torch.randn(64, 80, 100), torch.randint(0, 200, (64, 100))
        gradients = []
        for _ in range(10):
            model.zero_grad()
            model(input_features=features, labels=labels).loss.backward()
            gradients.append(model.model.decoder.embed_positions.weight.grad.clone())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)

"""Training on a tiny model: what the settings do, and what is left behind."""

import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, WhisperForConditionalGeneration
from transformers.training_args import ParallelMode

from stages.asr.batches import ClipDataset
from stages.asr.model import load_model, save_model
from stages.evaluate import Results, evaluate
from stages.params import load_params
from stages.pretrained import pretrained
from stages.runtime.errors import UserError
from stages.train import Paths, is_done, main, train
from stages.training.adapters import merge_adapters, remove_adapters
from stages.training.checkpoints import Checkpoint, CheckpointManager, newest_first
from stages.training.muon import Muon, orthogonalised
from stages.training.resume import Start
from stages.training.trainer import SpeechTrainer, loader_workers, regularisation, training_arguments
from stages.training.trial import largest_batches, random_state_kept
from tests.support.material import TINY, compiled_for_cuda, speech, write_params, write_shards

SHORT = {
    "train.optimizer": "adamw",
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
            trackers=folder / "runs",
            tuned=folder / "tuned",
            curves=folder / "curves",
            dropped=folder / "dropped.tsv",
            metrics=folder / "metrics.json",
            details=folder / "details.json",
        )
        return train(params.train, params.compute, params.checkpoints, paths), paths

    return call


@pytest.fixture
def trainer(tmp_path, tiny, shards):
    """Call with overrides: a trainer on the shared shards."""

    def call(name: str = "run", **overrides) -> SpeechTrainer:
        folder = tmp_path / name
        folder.mkdir()
        values = SHORT | {f"train.{key.replace('__', '.')}": value for key, value in overrides.items()}
        params = load_params(write_params(folder / "params.yaml", values))
        model = load_model(tiny, **regularisation(params.train))
        model.context = params.train.context
        clips = ClipDataset(shards, model, params.train.max_label_tokens)
        checkpoints = CheckpointManager(folder / "checkpoints", 1)
        return SpeechTrainer(model, clips, clips, params.train, params.compute, checkpoints, folder / "curves")

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
        {"gradient_checkpointing": "all"},
        {"batch_seconds": 1.5, "gradient_accumulation": 2},
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
    values = ("none", "full_windows", "all")
    curves = [trained(value, gradient_checkpointing=value, full_context_share=0.5)[1].curves for value in values]
    plain, *saving = (rows(folder / "training.tsv") for folder in curves)
    assert all(plain == other for other in saving)


def test_gradient_checkpointing_of_full_windows_computes_those_alone_twice(trainer):
    run = trainer(gradient_checkpointing="full_windows", full_context_share=0.5, max_steps=6, epochs=None)
    seen = []
    convolution, layer = run.model.model.encoder.conv1, run.model.model.encoder.layers[0].self_attn
    convolution.register_forward_pre_hook(lambda part, inputs: seen.append([inputs[0].shape[-1], part.training, 0]))
    layer.register_forward_pre_hook(lambda *_: seen[-1].__setitem__(2, seen[-1][2] + 1))
    run.run(None)
    steps = [(frames == 200, times) for frames, training, times in seen if training]
    assert set(steps) == {(True, 2), (False, 1)}


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


class Judged(TrainerCallback):
    """The weights of each evaluation, by step."""

    def __init__(self, run: SpeechTrainer):
        self.run, self.weights = run, {}

    def on_evaluate(self, _, state, *__, **___):
        self.weights[state.global_step] = self.run.weights()


def test_a_checkpoint_has_the_weights_to_average_and_links_what_it_had(trainer):
    run = trainer(average=3, max_steps=8, eval_every=1)
    run.checkpoints = CheckpointManager(run.checkpoints.folder, 3)
    judged = Judged(run)
    run.add_callback(judged)
    run.run(None)
    assert len(run.best.entries) == 3
    before, last = newest_first(run.checkpoints.folder)[1::-1]
    assert last.state.best == [[entry.step, entry.wer] for entry in run.best.entries]
    for entry in run.best.entries:
        kept = load_file(last.weights_of(entry.step))
        for name, value in judged.weights[entry.step].items():
            assert torch.equal(value, entry.weights[name]) and torch.equal(value, kept[name])
    assert len(list(last.folder.glob("best-*"))) == sum(entry.step != last.step for entry in run.best.entries)
    for step in {step for step, _ in last.state.best} & {step for step, _ in before.state.best}:
        assert last.weights_of(step).samefile(before.weights_of(step))


def test_the_mean_and_the_mixtures_are_tried_and_the_result_says_which_it_is(trained):
    base = trained("base", max_steps=2)[1].tuned
    metrics, _ = trained("run", pretrained=base, average=2, interpolate=[0.0, 0.5])
    tried = metrics["candidates"]
    assert len(tried) == 4 and metrics["weights"] in tried
    assert metrics["validation_wer"] == min(tried.values()) == tried[metrics["weights"]]
    assert metrics["best_step"] in (2, 4) and f"step {metrics['best_step']}" in tried
    with pytest.raises(UserError, match=r"train\.interpolate .* untrained: set it to \[\]"):
        trained("untrained", interpolate=[0.5])
    assert "candidates" not in trained("plain")[0]


def test_a_result_that_dvc_has_is_made_anew_whatever_its_weights(trained, monkeypatch):
    """Told to run again, a finished run starts afresh, also where its WER is of none of its steps."""
    _, paths = trained(average=2)
    (checkpoint,) = (Checkpoint(folder) for folder in paths.checkpoints.glob("*/step-*"))
    monkeypatch.chdir(paths.metrics.parent)
    assert not is_done(checkpoint, paths)
    digest = hashlib.md5(paths.metrics.read_bytes()).hexdigest()
    outs = [{"path": str(paths.metrics), "md5": digest}]
    Path("dvc.lock").write_text(json.dumps({"stages": {"train": {"outs": outs}}}))
    assert is_done(checkpoint, paths)
    (checkpoint.folder.parent / "result.json").write_text('{"validation_wer": 0.0, "best_step": 2}')
    assert not is_done(checkpoint, paths)


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


class Gradients(TrainerCallback):
    """The gradient of each step, as the optimizer gets it: (n_weights,) float32."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, *_, model, **__):
        self.steps.append(torch.cat([weights.grad.flatten() for weights in model.parameters()]))


@pytest.mark.parametrize("max_grad_norm", [0.1, 1e9], ids=["clipped", "whole"])
def test_a_step_is_the_mean_over_its_tokens_however_many_batches_it_is_cut_into(trainer, max_grad_norm):
    """12 clips in steps of 8: the second has 4, of fewer tokens.

    A gradient is a sum over some 250 tokens, and each cut adds them up in another order: a float32 sum of n terms in
    random order is off by about sqrt(n) 2^-24 of its size, here 9e-7. The curves are written to six digits, and their
    last one may be off by one; AdamW, which divides by the gradient's own size, adds no more in so few steps.
    """
    runs = []
    for batch_size, accumulation in ((8, 1), (4, 2), (2, 4)):
        shape = {"batch_size": batch_size, "gradient_accumulation": accumulation, "max_grad_norm": max_grad_norm}
        run = trainer(f"{batch_size}x{accumulation}", full_context_share=0.5, learning_rate=1e-3, **shape)
        gradients = Gradients()
        run.add_callback(gradients)
        run.run(None)
        curves = [np.array(rows(path)[1:], float) for path in (run.curves.training, run.curves.validation)]
        runs.append((gradients.steps, curves))
    (whole, curves), *others = runs
    assert len(whole) == 4 and all(step.norm() <= 1.0001 * max_grad_norm for step in whole)
    for steps, theirs in others:
        for mine, other in zip(whole, steps, strict=True):
            assert (mine - other).norm() <= 1e-6 * mine.norm()
        for mine, other in zip(curves, theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_is_decoded_in_trainings_precision(trainer, precision):
    run = trainer(precision=precision)
    seen = set()
    for part in (run.model.model.encoder, run.model.model.decoder):
        part.layers[0].fc1.register_forward_hook(lambda module, _, output: seen.add((module.training, output.dtype)))
    run.run(None)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert seen == {(True, dtype), (False, dtype)}


def test_a_torch_for_cuda_trains_and_evaluates_on_the_processor_where_there_is_no_gpu(trained, monkeypatch):
    compiled_for_cuda(monkeypatch)
    metrics, paths = trained()
    assert metrics["steps"] == 4
    results = Results(*(paths.tuned.parent / name for name in ("heard.tsv", "tables", "scores.json", "counts.json")))
    params = load_params(paths.tuned.parent / "params.yaml")
    assert evaluate(params.evaluate, params.compute, paths.tuned, paths.validation, results)["clips"] == 12


@pytest.fixture
def two_gpus(monkeypatch):
    """Have torch and transformers believe in two GPUs that no tensor reaches."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    yield torch.device("cuda")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_one_process_uses_one_gpu(two_gpus, tmp_path):
    params = load_params(write_params(tmp_path / "params.yaml", SHORT))
    arguments = training_arguments(params.train, params.compute, tmp_path, two_gpus)
    assert arguments.device == torch.device("cuda:0")
    assert arguments.parallel_mode == ParallelMode.NOT_PARALLEL
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, params.train.batch_size)
    assert arguments.accelerator_config.non_blocking


def test_batches_are_pinned_for_a_gpu_alone(trainer, monkeypatch):
    run = trainer()
    assert not run.get_train_dataloader().pin_memory
    monkeypatch.setattr(type(run.args), "device", torch.device("cuda"))
    assert run.get_train_dataloader().pin_memory


def test_a_gpu_trains_by_deterministic_ways_alone_in_tf32_and_tries_its_largest_batch_first(trainer, monkeypatch):
    run = trainer("cpu")
    assert not run.untried and run.create_optimizer().defaults["fused"]
    monkeypatch.setattr(type(run.model), "device", torch.device("cuda"))
    run = trainer("cuda", ctc_weight=0.0)  # whose head would go there
    assert run.untried
    monkeypatch.setattr(type(run.args), "device", torch.device("cuda"))
    seen = []
    run.train_from = lambda start: seen.append(
        (torch.is_deterministic_algorithms_warn_only_enabled(), torch.get_float32_matmul_precision())
    )
    try:
        run.run(None)
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(False)
    assert seen == [(False, "high")]


def test_batches_are_made_by_other_processes_beside_a_gpu_and_are_the_same(trainer, monkeypatch):
    """In a GPU's place the processor: batches do not know where they go."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    results = []
    for workers in ("auto", 2):
        run = trainer(f"workers-{workers}", dropout=0.1, spec_augment__time_prob=0.2, augment__noise=0.5)
        run.compute = run.compute.model_copy(update={"loader_workers": workers})
        assert loader_workers(run.compute, cpu) == (0 if workers == "auto" else 2)
        for free, expected in ((1 << 33, min(4, os.cpu_count())), (1 << 26, 0)):  # of shared memory
            usage = SimpleNamespace(free=free)
            monkeypatch.setattr("stages.training.trainer.shutil.disk_usage", lambda _, usage=usage: usage)
            assert loader_workers(run.compute, gpu) == (expected if workers == "auto" else 2)
        monkeypatch.undo()
        assert run.get_train_dataloader().num_workers == (0 if workers == "auto" else 2)
        run.run(None)
        results.append((run.weights(), run.curves.training.read_bytes(), run.curves.validation.read_bytes()))
    (mine, *curves), (theirs, *other_curves) = results
    assert curves == other_curves and all(torch.equal(mine[name], theirs[name]) for name in mine)


def overflow(frames: int, clips: int, training: bool):
    """A hook on the encoder of a device whose memory is too small for such a batch."""

    def hook(module, inputs):
        if module.training == training and inputs[0].shape[0] >= clips and inputs[0].shape[2] >= frames:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return hook


def test_a_gpu_that_is_too_small_is_reported_before_the_first_step(trainer):
    run = trainer()
    run.untried = True
    run.model.model.encoder.register_forward_pre_hook(overflow(200, 4, training=True))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(UserError) as refusal:
        run.run(None)
    assert str(refusal.value) == (
        "the memory of the GPU ran out: lower train.batch_size (4) and raise train.gradient_accumulation (1) by the "
        "same factor, or set train.gradient_checkpointing: all, or set train.full_context_share: 0 (now 0.1)"
    )
    assert run.state.global_step == 0
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())


def test_memory_that_runs_out_later_names_only_what_is_left_to_lower(trainer):
    run = trainer(gradient_checkpointing="all", full_context_share=0.0, batch_size=1)
    run.model.model.encoder.register_forward_pre_hook(overflow(50, 1, training=True))
    with pytest.raises(UserError, match=r"ran out: train a smaller model, whisper\.base$"):
        run.run(None)


def test_memory_that_runs_out_in_validation_is_the_decoders(trainer):
    run = trainer()
    run.model.model.encoder.register_forward_pre_hook(overflow(50, 5, training=False))
    with pytest.raises(UserError, match=r"ran out: lower compute\.decode_batch_size \(32\)$"):
        run.run(None)


def test_the_trial_changes_no_byte_of_a_run(trainer):
    """Neither weights nor random states: dropout draws from torch's, layer dropping too, masks from numpy's."""
    results = []
    for untried in (False, True):
        run = trainer(f"trial-{untried}", dropout=0.1, layerdrop=0.3, spec_augment__time_prob=0.2, batch_size=5)
        run.untried = untried
        sizes = []
        run.model.model.encoder.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(inputs[0].shape))
        run.run(None)
        results.append((run.weights(), run.curves.training.read_bytes(), run.curves.validation.read_bytes(), sizes))
    (mine, *curves, without), (theirs, *other_curves, tried) = results
    assert curves == other_curves and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert tried == [(5, 80, 200), *without]


def test_the_longest_clips_are_tried_too_where_full_windows_alone_are_checkpointed(trainer):
    for checkpointing, also in (("all", False), ("full_windows", True), ("none", False)):
        run = trainer(checkpointing, gradient_checkpointing=checkpointing)
        for longest, shorter in ((100, 100), (200, 150)):  # than the window, on which they would be checkpointed
            run.clips.most_frames = lambda longest=longest: [50, longest]
            tried = largest_batches(run.clips, run.settings, run.speech_model.window)
            assert [batch["input_features"].shape[2] for batch in tried] == [*([shorter] if also else []), 200]


def test_no_batch_is_larger_than_the_one_that_is_tried(trainer):
    """In frames and tokens of its windows, or in both of one of two where seconds bound it."""
    for context, full_share, seconds in (
        ("clip", 0.0, None),
        ("clip", 0.3, None),
        ("full", 0.0, None),
        ("clip", 0.3, 4),
    ):
        shape = {"context": context, "full_context_share": full_share, "batch_seconds": seconds}
        run = trainer(f"{context}-{full_share}-{seconds}", **shape, batch_size=8 if seconds else 4)
        tried = largest_batches(run.clips, run.settings, run.speech_model.window)
        assert len(tried) == (2 if seconds else 1)
        rows, frames, tokens = (
            max(batch[name].shape[axis] for batch in tried)
            for name, axis in (("labels", 0), ("input_features", 2), ("labels", 1))
        )
        most = max(len(batch["labels"]) * batch["input_features"].shape[2] for batch in tried)
        for batch in run.get_train_dataloader():
            n_rows, _, n_frames = batch["input_features"].shape
            assert n_rows <= rows and n_frames <= frames and n_rows * n_frames <= most
            assert batch["labels"].shape[1] <= tokens


def test_an_operation_without_a_deterministic_way_is_said_and_then_allowed(trainer, capsys):
    run = trainer()
    run.untried = True

    def hook(*_):
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError("x_cuda does not have a deterministic implementation")

    run.model.model.encoder.register_forward_pre_hook(hook)
    run.add_callback(Strict())
    run.run(None)
    assert run.state.global_step == 4
    assert "may not give the same bytes: x_cuda does not have" in capsys.readouterr().err


class Strict(TrainerCallback):
    """What training on a GPU asks of torch."""

    def on_train_begin(self, *_, **__):
        torch.use_deterministic_algorithms(True)


def test_every_random_state_is_kept():
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand([]).item()]

    torch.manual_seed(1)
    with random_state_kept(torch.device("cpu")):
        inside = draw()
    assert draw() == inside


def test_the_command_has_cublas_add_up_in_one_order(monkeypatch, tmp_path):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with pytest.raises(UserError, match="is missing"):
        main.callback(tmp_path / "params.yaml", fresh=False, adopt=None)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    "overrides",
    [
        {"lora__rank": 2, "lora__dropout": 0.1, "average": 2},
        {"batch_seconds": 3, "full_context_share": 0.3},
        {"optimizer": "muon"},
    ],
    ids=lambda overrides: next(iter(overrides)).partition("__")[0],
)
def test_a_resumed_run_ends_in_the_same_weights(trainer, overrides):
    whole, resumed = (trainer(name, **overrides) for name in ("whole", "resumed"))
    whole.checkpoints = CheckpointManager(whole.checkpoints.folder, 2)
    whole.run(None)
    last, middle = newest_first(whole.checkpoints.folder)
    assert (last.step, middle.step) == (4, 2)
    resumed.run(Start(middle))
    assert resumed.weights().keys() == whole.weights().keys()
    assert all(torch.equal(value, whole.weights()[name]) for name, value in resumed.weights().items())
    for mine, theirs in zip(resumed.best.entries, whole.best.entries, strict=True):
        assert mine.step == theirs.step and mine.weights.keys() == theirs.weights.keys()
        assert all(torch.equal(value, theirs.weights[name]) for name, value in mine.weights.items())


def test_a_random_generator_that_transformers_passes_over_is_kept(trainer, monkeypatch, tmp_path):
    """As that of Apple's GPUs, for which one of the processor's stands in."""
    generator = torch.Generator()
    theirs = SimpleNamespace(get_rng_state=generator.get_state, set_rng_state=generator.set_state)
    monkeypatch.setattr("stages.training.trainer.PASSED_OVER", ("cpu",))
    monkeypatch.setattr(torch, "get_device_module", lambda _: theirs)
    run = trainer()
    (tmp_path / "rng_state.pth").write_bytes(run.random_state())
    drawn = torch.rand(3, generator=generator)
    run._load_rng_state(str(tmp_path))
    assert torch.equal(torch.rand(3, generator=generator), drawn)
    monkeypatch.setattr("stages.training.trainer.PASSED_OVER", ())
    (tmp_path / "rng_state.pth").write_bytes(run.random_state())  # as another kind of device writes it
    monkeypatch.setattr("stages.training.trainer.PASSED_OVER", ("cpu",))
    run._load_rng_state(str(tmp_path))


LORA = {"lora__rank": 4, "lora__targets": ["q_proj", "v_proj", "fc1"]}


def test_adapters_alone_are_trained_and_kept_and_a_plain_whisper_comes_out(trained, tiny):
    metrics, paths = trained(**LORA, average=2, ctc_weight=0.3)
    (checkpoint,) = (Checkpoint(folder) for folder in paths.checkpoints.glob("*/step-*"))
    kept = load_file(checkpoint.folder / "model.safetensors")
    adapters = {name for name in kept if ".lora_" in name}
    assert len(adapters) == 2 * 8 and kept.keys() - adapters == {"ctc_head.weight", "ctc_head.bias"}
    optimizer = torch.load(checkpoint.folder / "optimizer.pt")
    assert len(optimizer["state"]) == len(kept)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, paths.tuned))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name.partition(".lora_")[0] + ".weight" for name in adapters} and before.keys() == after.keys()
    assert (paths.tuned / "config.json").is_file() and not (paths.tuned / "adapter_config.json").exists()
    assert metrics["validation_wer"] == min(metrics["candidates"].values())


def test_a_merged_model_computes_what_its_adapters_did(trainer, tiny):
    """Up to the rounding of float32 sums over 16 and 64 values."""
    run = trainer(**LORA, learning_rate=0.1, ctc_weight=0.0)
    run.run(None)
    whisper, inputs = run.speech_model.whisper.eval(), largest_batches(run.clips, run.settings, 200)[0]
    adapters, base = run.weights(), load_model(tiny).whisper
    with torch.no_grad():
        adapted = whisper(**inputs).logits
        merged = merge_adapters(whisper, adapters)
        remove_adapters(whisper)
        assert [*whisper.state_dict()] == [*base.state_dict()] and merged.keys() == base.state_dict().keys()
        assert torch.equal(whisper(**inputs).logits, base(**inputs).logits)
        whisper.load_state_dict(merged)
        torch.testing.assert_close(whisper(**inputs).logits, adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapted, base(**inputs).logits, atol=1e-2)


@pytest.mark.parametrize(
    ("freeze", "rank", "trains"),
    [("encoder", 0, "decoder"), (1, 0, r"decoder|encoder\.layer_norm"), ("encoder", 2, r"decoder.*[qv]_proj")],
)
def test_what_is_frozen_stays_and_the_optimizer_knows_nothing_of_it(trained, tiny, freeze, rank, trains):
    _, paths = trained(freeze=freeze, lora__rank=rank, ctc_weight=0.0, max_steps=2)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, paths.tuned))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    may_change = {name for name in before if re.match(rf"model\.({trains})\.", name)}
    assert changed and changed <= may_change
    (checkpoint,) = paths.checkpoints.glob("*/step-*")
    assert len(torch.load(checkpoint / "optimizer.pt")["state"]) == len(changed) * (2 if rank else 1)


def test_more_layers_than_there_are_cannot_be_frozen(trained):
    with pytest.raises(UserError, match=r"train\.freeze is 2, and the encoder has 1 layers: lower it"):
        trained(freeze=2, ctc_weight=0.0)


@pytest.fixture
def wide(tmp_path, shards_folder) -> Path:
    """The folder of a model whose layers are large enough for 8 bits: bitsandbytes leaves less than 4,096 values."""
    whisper = load_params(write_params(tmp_path / "wide.yaml", TINY | {"whisper.scratch.d_model": 64})).whisper
    pretrained(whisper, shards_folder, tmp_path / "wide")
    return tmp_path / "wide"


def test_adamw_in_8_bits_holds_its_moments_in_bytes_and_trains_as_adamw_does(trained, wide):
    pytest.importorskip("bitsandbytes")
    losses = []
    for optimizer in ("adamw", "adamw_8bit"):
        _, paths = trained(optimizer, pretrained=wide, optimizer=optimizer, learning_rate=1e-3, max_steps=6)
        losses.append([float(row[1]) for row in rows(paths.curves / "training.tsv")[1:]])
    (checkpoint,) = paths.checkpoints.glob("*/step-*")
    states = torch.load(checkpoint / "optimizer.pt")["state"].values()
    quantised = [part for state in states for part in state.values() if isinstance(part, dict)]
    linear, convolutions, head = 6 + 10, 2, 1
    assert sum(state["state1"].dtype == torch.uint8 for state in quantised) == linear + convolutions + head
    exact, rounded = losses
    assert abs(rounded[-1] - exact[-1]) < 0.2 * (exact[0] - exact[-1])


def test_muon_moves_the_layers_matrices_alone_by_its_own_rule(trained, tiny):
    _, paths = trained(optimizer="muon", ctc_weight=0.3)
    (checkpoint,) = paths.checkpoints.glob("*/step-*")
    states = torch.load(checkpoint / "optimizer.pt")["state"].values()
    assert Counter(tuple(state) for state in states)[("mean",)] == 6 + 10  # an encoder's layer and a decoder's
    assert {tuple(state) for state in states} == {("mean",), ("step", "mean", "square")}
    losses = [float(row[1]) for row in rows(paths.curves / "training.tsv")[1:]]
    assert losses[-1] < losses[0]


def test_muons_steps_are_of_one_length_in_every_direction():
    draw = torch.Generator().manual_seed(1)
    for rows_, columns in ((8, 8), (8, 24), (24, 8)):
        left, _ = torch.linalg.qr(torch.randn(2, rows_, 8, generator=draw))
        right, _ = torch.linalg.qr(torch.randn(2, columns, 8, generator=draw))
        values = torch.logspace(0, -2.7, 8)  # of which the least is 0.17 % of the norm
        made = left.mT @ orthogonalised(left @ torch.diag(values) @ right.mT) @ right
        lengths = made.diagonal(dim1=1, dim2=2)
        assert lengths.min() > 0.8 and lengths.max() < 1.2
        assert (made - torch.diag_embed(lengths)).abs().max() < 1e-3  # roundings of float32, grown a thousandfold


def test_muon_takes_as_many_matrices_at_once_as_memory_has_room_for(monkeypatch):
    draw = torch.Generator().manual_seed(1)
    start, slope = torch.randn(2, 5, 6, 4, generator=draw)
    moved = []
    for at_once in (2**24, 50, 1):  # all, two, each by itself
        monkeypatch.setattr("stages.training.muon.AT_ONCE", at_once)
        matrices = [nn.Parameter(each.clone()) for each in start]
        for each, gradient in zip(matrices, slope, strict=True):
            each.grad = gradient.clone()
        Muon([{"params": matrices, "matrices": True}], lr=0.1).step()
        moved.append(torch.stack([each.detach() for each in matrices]))
    for others in moved[1:]:  # roundings of float32, grown a thousandfold, of a step of 0.05
        assert torch.allclose(others, moved[0], atol=1e-5)


def test_what_is_no_matrix_goes_by_adamw():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    settings = {"lr": 0.1, "betas": (0.9, 0.98), "weight_decay": 0.1}
    optimizers = Muon([{"params": [ours]}], **settings), torch.optim.AdamW([theirs], **settings)
    for step in range(5):
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            weights.grad = torch.cos(torch.arange(7.0) + step)
            optimizer.step()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # some roundings of float32 in each of five steps


@pytest.mark.parametrize(
    ("name", "overrides", "remedy"),
    [
        ("peft", {"lora__rank": 1}, "train.lora.rank: 0"),
        ("bitsandbytes", {"optimizer": "adamw_8bit"}, "train.optimizer"),
    ],
)
def test_a_library_that_is_missing_is_named(trained, monkeypatch, name, overrides, remedy):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(UserError, match=rf"{name} is not installed: pip install {name}, or set {remedy}"):
        trained(**overrides)


def test_the_precision_that_is_chosen_is_said_and_recorded(trained, monkeypatch, capsys):
    for quick, chosen in ((True, "bf16"), (False, "fp32")):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda quick=quick: quick)
        metrics, paths = trained(chosen, precision="auto", max_steps=2)
        assert metrics["precision"] == chosen == json.loads(paths.metrics.read_text())["precision"]
        (parts,) = paths.checkpoints.glob("*/parts.json")
        assert json.loads(parts.read_text())["params"]["precision"] == chosen
        assert f"train.precision: auto is {chosen} here" in capsys.readouterr().err

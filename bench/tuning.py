"""``python -m bench.tuning``: ways to fine-tune in less memory or time, beside training all weights in float32.

A model is trained on in each way for the same number of steps, each in a process of its own with one thread. Memory of
so small a model says little, so what a way would hold of whisper-small's weights, gradients and moments stands beside
its peak. Time is the processor's, which other work beside does not change much. Wants what a `make repro` leaves.
"""

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from transformers import TrainerCallback

from bench.context import read, schedule, words
from stages.asr.model import load_model, save_model
from stages.params import Train, load_params
from stages.train import Paths, load_clips
from stages.training.checkpoints import CheckpointManager, newest_first
from stages.training.trainer import SpeechTrainer, regularisation, weights_of
from tools.estimate import GB, empty_model, openai_shape, peak_memory, training_memory

RATE, ADAPTER_RATE = 1e-4, 1e-3
LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
WAYS: dict[str, dict[str, Any]] = {
    "all weights, float32": {},
    "LoRA, rank 8, q and v": {"learning_rate": ADAPTER_RATE, "lora": {"rank": 8, "targets": ["q_proj", "v_proj"]}},
    "LoRA, rank 8, all linear layers": {"learning_rate": ADAPTER_RATE, "lora": {"rank": 8, "targets": LINEAR}},
    "frozen encoder": {"freeze": "encoder", "ctc_weight": 0.0},
    "its lower two layers frozen": {"freeze": 2},
    "8-bit AdamW": {"optimizer": "adamw_8bit"},
    "Muon": {"optimizer": "muon"},
    "bf16": {"precision": "bf16"},
    "checkpointing of full windows": {"gradient_checkpointing": "full_windows"},
    "checkpointing of all": {"gradient_checkpointing": "all"},
    "batches by seconds": {"batch_size": 64, "batch_seconds": 40.0},
}


@click.command()
@click.option("--features", type=click.Path(path_type=Path), default="data/features")
@click.option("--recipe", type=click.Path(path_type=Path), default="params.yaml", help="A whole params.yaml.")
@click.option("--base", type=click.Path(path_type=Path), default="models/tuned", help="The model to start from.")
@click.option("--steps", default=100, show_default=True)
@click.option("--ways", multiple=True, type=click.Choice([*WAYS]), help="Some of them; all without it.")
def main(features: Path, recipe: Path, base: Path, steps: int, ways: tuple[str, ...]) -> None:
    """Fine-tune one base in each way, and print a row of figures for it."""
    values = load_params(recipe)
    said = words(features / "test").sum()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        own, full = (100 * edits.sum() / said for edits in read(base, features / "test"))
        click.echo("| way | WER | full window | loss | time a clip | peak | a checkpoint | whisper-small would hold |")
        click.echo("|---|---|---|---|---|---|---|---|")
        click.echo(f"| the base | {own:.2f} | {full:.2f} | | | | | |")
        first = None
        for way in ways or WAYS:
            changes = schedule(steps) | {"learning_rate": RATE, "optimizer": "adamw"} | WAYS[way]
            lora = values.train.lora.model_dump() | changes.pop("lora", {})
            settings = Train(**values.train.model_dump() | changes | {"lora": lora})
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(fine_tune, (folder / way, recipe, settings, features, base))
            own, full = (100 * edits.sum() / said for edits in read(folder / way / "tuned", features / "test"))
            first = first or found["seconds"]
            figures = f"{own:.2f} | {full:.2f} | {found['loss']:.4f} | {found['seconds'] / first:.2f}"
            memory = f"{found['peak'] / 1e6:.0f} MB | {found['checkpoint'] / 1e6:.1f} MB"
            click.echo(f"| {way} | {figures} | {memory} | {held_of_small(settings) / GB:.2f} GB |")


class Clock(TrainerCallback):
    """Seconds of the processor's that steps took, without the first ones and without validation."""

    def __init__(self, leave_out: int):
        self.leave_out, self.begun, self.seconds, self.steps = leave_out, 0.0, 0.0, 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.process_time()

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step > self.leave_out:
            self.seconds += time.process_time() - self.begun
            self.steps += 1


def fine_tune(place: Path, recipe: Path, settings: Train, features: Path, base: Path) -> dict[str, float]:
    """Train from a base into place/tuned, in this process: the last validation's loss, seconds a clip, and bytes."""
    torch.set_num_threads(1)
    place.mkdir()
    model = load_model(base, **regularisation(settings))
    model.context = settings.context
    names = ("checkpoints", "trackers", "tuned", "curves", "dropped", "metrics", "details")
    splits = (features / "train", features / "validation", base)
    clips, validation = load_clips(model, settings, Paths(*splits, *(place / name for name in names)))
    checkpoints = CheckpointManager(place / "checkpoints", 1)
    trainer = SpeechTrainer(model, clips, validation, settings, load_params(recipe).compute, checkpoints, place / "c")
    clock = Clock((settings.max_steps or 0) // 10)
    trainer.add_callback(clock)
    trainer.run(None)
    *_, (_, loss, _) = (row.split("\t") for row in trainer.curves.validation.read_text().splitlines())
    (checkpoint,) = newest_first(checkpoints.folder)
    trainer.take_best(lambda: weights_of(load_model(base).whisper))
    save_model(model, place / "tuned")
    sampler = trainer.make_sampler()
    seconds = clock.seconds / clock.steps * len(sampler) / settings.gradient_accumulation / len(clips)
    size = sum(path.stat().st_size for path in checkpoint.folder.iterdir())
    return {"loss": float(loss), "seconds": seconds, "peak": peak_memory(), "checkpoint": size}


def held_of_small(settings: Train) -> float:
    """Bytes of weights, gradients and moments of whisper-small."""
    config = openai_shape("small", n_mels=80)
    if isinstance(settings.freeze, int):
        settings = settings.model_copy(update={"freeze": settings.freeze * config.encoder_layers // 3})
    return training_memory(empty_model(config), settings).training


if __name__ == "__main__":
    main()

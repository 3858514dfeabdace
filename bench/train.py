"""``python -m bench.train``: clips a second of training, against the notebooks' way and the Trainer's example.

Random weights in one of OpenAI's shapes, and noise as long as Common Voice's clips. The notebooks pad every clip to
30 s, in batches of 2, 16 of which make a step, with gradient checkpointing; the Trainer's example has batches of 16
without. Of each way batches forwards and back are timed, and the optimizer by itself, of which each clip bears its part
of a step of 32. A CPU takes small batches: there, time goes with clips. Full windows are timed with a clip each, and
filled with as many as fit, as the default has them; a share of such steps is the mean of them and of the others.
"""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from stages.asr.batches import BatchItem, ClipDataset, Variation, collate
from stages.asr.device import best_device, half_precision
from stages.asr.mel import FRAMES_PER_SECOND
from stages.asr.model import SpeechModel
from stages.asr.shards import Entry, Shards, write_shard
from stages.params import Params
from stages.params_file import ParamsFile
from stages.training.trainer import SpeechTrainer
from tools.estimate import PIECES, SHAPES, NoCheckpoints, Stopwatch, make_model, model_shape
from tools.recipe import recipe_values

SHORTEST, LONGEST, MEAN = 2.0, 10.0, 4.5  # seconds of Common Voice's clips
SHARES = (0.02, 0.05, 0.1)  # of steps on full windows; the default's is the last
STEP = 32  # clips of an optimizer step, in every way


@click.command()
@click.option("--size", type=click.Choice(list(SHAPES)), default="small", show_default=True)
@click.option("--device", default="", help="cpu, cuda, …  [default: the accelerator where there is one]")
def main(size: str, device: str) -> None:
    """Time the ways to train one model."""
    place = torch.device(device) if device else best_device()
    cpu = place.type == "cpu"
    with made_up(size, 32 if cpu else 256, place) as (values, model, shards):
        few, many = (2, 8) if cpu else (16, 32)
        found = {
            "the notebooks' way: batches of 2, 30 s, checkpointing": padded(values, model, shards, 2, True),
            f"the Trainer's example: batches of {few}, 30 s": padded(values, model, shards, few, False),
        }
        own = trained_here(values, model, shards, "clip", many, len(shards))
        full = trained_here(values, model, shards, "full", few, 2 * few)
        filled = trained_here(values, model, shards, "full", many, len(shards), filled_window_share=1.0)
    found |= {"on full windows, a clip each": full, "filled": filled}
    found |= {f"own lengths, {share:.0%} full windows, filled": (1 - share) * own + share * filled for share in SHARES}
    baseline = next(iter(found.values()))
    click.echo(f"whisper-{size}'s shape on {place.type}, {values.train.precision}")
    for name, seconds in found.items():
        click.echo(f"{name:<58} {1 / seconds:7.3f} clips/s, {baseline / seconds:.1f}x")


@contextmanager
def made_up(size: str, n_clips: int, device: torch.device) -> Iterator[tuple[Params, SpeechModel, Shards]]:
    """The recipe for whisper-small with another base, a model of its shape with random weights, and clips of noise."""
    file = ParamsFile(Path("params.yaml"))
    changes = {"whisper.base": f"openai/whisper-{size}", "train.precision": "fp32", "compute.loader_workers": 0}
    if dtype := half_precision(device):
        changes["train.precision"] = "bf16" if dtype == torch.bfloat16 else "fp16"
    for key, value in (recipe_values(Path("recipes"), "swedish-small") | changes).items():
        file.set(key, value)
    values = file.validate()
    with tempfile.TemporaryDirectory() as folder:
        draw = np.random.default_rng(1)
        seconds = (SHORTEST + (MEAN - SHORTEST) * draw.gamma(2.0, 0.5, n_clips)).clip(SHORTEST, LONGEST)
        write_noise(Path(folder), seconds, values.featurize.n_mels, draw)
        shards = Shards(Path(folder))
        model = make_model(values, model_shape(values), shards)
        model.whisper.to(device)
        yield values, model, shards


def write_noise(folder: Path, seconds: np.ndarray, n_mels: int, draw: np.random.Generator) -> None:
    """Clips of so many seconds as a shard, with as many label tokens as speech has."""
    clips = []
    for number, length in enumerate(seconds):
        frames = int(length * FRAMES_PER_SECOND)
        text = ("hej på dig " * frames)[: int(length * PIECES)]
        mel = draw.integers(0, 200, (frames, n_mels), dtype=np.uint8)
        clips.append((Entry(f"{number:05}", text, "noise", "yes", float(length), frames, 0.5), mel.tobytes()))
    write_shard(folder / "00000.zip", "uint8", n_mels, clips)


class Sum(Stopwatch):
    """Seconds of all batches since ``skipped`` steps, which warm up."""

    def __init__(self, device: torch.device, skipped: int):
        super().__init__(device)
        self.skipped, self.seconds = skipped, 0.0

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        super().on_pre_optimizer_step()
        self.skipped -= 1
        self.seconds += self.batches if self.skipped < 0 else 0.0


def padded(values: Params, model: SpeechModel, shards: Shards, batch: int, checkpointing: bool) -> float:
    """Seconds a clip of transformers' own trainer on clips padded to the window."""
    dataset = ClipDataset(shards, model, values.train.max_label_tokens)
    clips = [dataset[BatchItem((place,), model.window)] for place in range(2 * batch)]
    precision, device = values.train.precision, model.whisper.device
    clock = Sum(device, 1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            max_steps=2,
            activation_checkpointing=checkpointing,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            save_strategy="no",
            use_cpu=device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # else two GPUs share a batch without mixed precision
        whisper: Any = model.whisper
        trainer = Seq2SeqTrainer(whisper, arguments, data_collator=collate, train_dataset=clips, callbacks=[clock])
        try:
            trainer.train()
        except torch.OutOfMemoryError:
            clock.seconds = math.inf
        whisper.gradient_checkpointing_disable()
    return clock.seconds / batch + clock.optimizer / STEP


def trained_here(
    values: Params, model: SpeechModel, shards: Shards, context: str, batch: int, n_clips: int, **settings: float
) -> float:
    """Seconds a clip of the project's trainer on n_clips of them, once through."""
    steps = n_clips // batch
    changes: dict[str, Any] = {"context": context, "full_context_share": 0.0, "filled_window_share": 0.0}
    changes |= {"batch_size": batch, "gradient_accumulation": 1, "max_steps": steps, "epochs": None, "patience": None}
    changes |= {"gradient_checkpointing": "all" if context == "full" else "none"}  # of a run: full_windows
    changes |= {"log_every": 1000, "eval_every": 1000, "save_every": 1000, "warmup_steps": 0}
    train = values.train.model_copy(update=changes | settings)
    clips = ClipDataset(shards, model, train.max_label_tokens, variation=Variation(train.augment))
    clock = Sum(model.whisper.device, 0)  # warm by what came before
    with tempfile.TemporaryDirectory() as folder:
        manager: Any = NoCheckpoints(Path(folder))
        trainer = SpeechTrainer(model, clips, clips, train, values.compute, manager, Path(folder))
        trainer.add_callback(clock)
        trainer.partial = Path(folder)
        trainer.untried = False  # the largest batches' trial is no training
        trainer.evaluate = lambda *_, **__: {}  # validation is bench.evaluate's
        trainer.run(None)
    return clock.seconds / n_clips + clock.optimizer / STEP


if __name__ == "__main__":
    main()

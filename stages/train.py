"""Train and validation shards + models/pretrained -> models/tuned, and the curves of how it went."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.asr.batches import ClipDataset
from stages.asr.clips import Drop, write_rows
from stages.asr.device import best_device
from stages.asr.model import SpeechModel, check_fit, folder_digest, load_model, save_model
from stages.asr.shards import Shards
from stages.params import Checkpoints, Compute, Train, load_params
from stages.runtime.errors import UserError
from stages.runtime.files import json_text, write_json
from stages.training.checkpoints import PARTS, CheckpointManager, LocalCheckpoints, TrainingState, locked, prune
from stages.training.mirror import Mirror
from stages.training.resume import find_start, is_recorded
from stages.training.run import describe_run
from stages.training.trackers import TrackedRun, check_installed, open_trackers
from stages.training.trainer import SpeechTrainer, regularisation

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--params", type=PATH, required=True)
@click.option("--train", "train_shards", type=PATH, required=True)
@click.option("--validation", type=PATH, required=True)
@click.option("--pretrained", type=PATH, required=True, help="The model to start from.")
@click.option("--checkpoints", type=PATH, required=True, help="Store of unfinished runs, below DVC_ROOT; no out.")
@click.option(
    "--trackers", type=PATH, required=True, help="Folder for files of compute.report_to, below DVC_ROOT; no out."
)
@click.option("--tuned", type=PATH, required=True, help="Folder for the best model.")
@click.option("--curves", type=PATH, required=True, help="Folder for training.tsv and validation.tsv.")
@click.option("--dropped", type=PATH, required=True, help="Table of what was left out.")
@click.option("--metrics", type=PATH, required=True, help="File for the scores that people compare.")
@click.option("--details", type=PATH, required=True, help="File for the counts.")
@click.option("--fresh", is_flag=True, envvar="VISKA_FRESH", help="Start anew, whatever checkpoints there are.")
@click.option("--adopt", envvar="VISKA_ADOPT", metavar="RUN", help="Go on from another run's checkpoint.")
def main(params: Path, fresh: bool, adopt: str | None, **paths: Path) -> None:
    """Fine-tune the base model; keep the weights with the lowest validation WER. Goes on where a run was stopped."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else its sums differ; read when CUDA starts
    values = load_params(params)
    for name in ("checkpoints", "trackers"):
        paths[name] = repository() / paths[name]
    result = train(values.train, values.compute, values.checkpoints, Paths(**paths), fresh, adopt)
    click.echo(f"validation WER {result['validation_wer']:.1f} % at step {result['best_step']} of {result['steps']}")


def repository() -> Path:
    """The one that stays: an experiment runs in a folder of its own, which is deleted when it fails."""
    return Path(os.environ.get("DVC_ROOT", "."))


@dataclass(frozen=True)
class Paths:
    """What train reads and writes, as the options above."""

    train_shards: Path
    validation: Path
    pretrained: Path
    checkpoints: Path
    trackers: Path
    tuned: Path
    curves: Path
    dropped: Path
    metrics: Path
    details: Path


def train(
    settings: Train,
    compute: Compute,
    checkpoints: Checkpoints,
    paths: Paths,
    fresh: bool = False,
    adopt: str | None = None,
) -> dict[str, Any]:
    """Train, and write everything that ``paths`` names; returns what ``metrics`` and ``details`` hold.

    fresh: pass over every checkpoint. adopt: the name, or its beginning, of another run to go on from. Raises UserError
    where a tracker's library is missing, the features do not fit the model, no clip is left, the loss leaves the finite
    numbers, the memory or the disk is full, or a checkpoint is there that fits in part only and nobody has said what to
    do with it.
    """
    check_installed(compute.report_to)
    device = best_device()
    model = load_model(paths.pretrained, device, **regularisation(settings))
    model.context, model.untrained = settings.context, False
    model.whisper.generation_config.max_length = settings.generation_max_tokens
    clips, validation = load_clips(model, settings, paths)
    shards = [paths.train_shards, paths.validation]
    run = describe_run(settings.model_dump(mode="json"), shards, folder_digest(paths.pretrained), __name__, device)
    local = LocalCheckpoints(paths.checkpoints)
    folder = local.folder(run.name)
    with locked(folder):
        keep, remote = checkpoints.keep, checkpoints.mirror
        mirror = Mirror(repository(), remote, keep.remote, folder) if remote else None
        start = find_start(run, local, mirror.remote if mirror else None, fresh, adopt)
        if start and start.checkpoint.run == run.name and is_done(start.checkpoint.state, paths):
            prune(folder, 0)
            start = None
        write_json(folder / PARTS, run.parts)
        manager = CheckpointManager(folder, keep.local, mirror)
        trainer = SpeechTrainer(model, clips, validation, settings, compute, manager, paths.curves)
        trainer.add_callback(RunningMetrics(trainer, paths.metrics))
        with open_trackers(compute.report_to, TrackedRun(run, paths.trackers), paths.curves) as trackers:
            trainer.add_callback(trackers)
            trainer.run(start)
            result = finish(trainer, paths)
        local.remove_finished(spare=run.name)
    return result


class RunningMetrics(TrainerCallback):
    """What people compare, written as soon as it is known, for `dvc exp show` to show of a run that is under way."""

    def __init__(self, trainer: SpeechTrainer, metrics: Path):
        self.trainer, self.metrics = trainer, metrics

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer.best_weights:  # of the checkpoint that this start goes on from
            write_json(self.metrics, compared(self.trainer.current_state()))

    on_evaluate = on_train_begin


def load_clips(model: SpeechModel, settings: Train, paths: Paths) -> tuple[ClipDataset, ClipDataset]:
    """Train's and validation's clips; lists those whose labels are too long."""
    clips, drops = [], []
    for folder in (paths.train_shards, paths.validation):
        shards = Shards(folder)
        check_fit(model, shards, folder)
        clips.append(ClipDataset(shards, model, settings.max_label_tokens))
        drops += [Drop(folder.name, clip, "label too long") for clip in clips[-1].dropped]
        if not len(clips[-1]):
            raise UserError(f"no clip of {folder} has a label within train.max_label_tokens: raise it")
    write_rows(paths.dropped, Drop, drops)
    return clips[0], clips[1]


def is_done(state: TrainingState, paths: Paths) -> bool:
    """Whether DVC has the result of this state already, and so was told to run the stage again."""
    return state.finished and is_recorded(paths.metrics, json_text(compared(state)))


def compared(state: TrainingState) -> dict[str, float]:
    """What people compare of a run in this state."""
    assert state.best_wer is not None
    return {"validation_wer": round(state.best_wer, 2), "best_step": state.best_step}


def finish(trainer: SpeechTrainer, paths: Paths) -> dict[str, Any]:
    """Write the best weights and the metrics, and make room."""
    trainer.parent.check()
    model = trainer.take_best()
    shutil.rmtree(paths.tuned, ignore_errors=True)
    save_model(model, paths.tuned)
    state = trainer.current_state()
    dropped = len(paths.dropped.read_text(encoding="utf-8").splitlines()) - 1
    details = {"steps": state.step, "dropped": {"label too long": dropped} if dropped else {}}
    details |= {"adopted": state.adopted} if state.adopted else {}
    write_json(paths.metrics, compared(state))
    write_json(paths.details, details)
    trainer.checkpoints.finish()
    return compared(state) | details

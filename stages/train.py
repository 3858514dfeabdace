"""Train and validation shards + models/pretrained -> models/tuned, and the curves of how it went."""

import os
import platform
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from stages.asr.augmentation import AugmentOptions
from stages.asr.batches import ClipDataset, Variation
from stages.asr.clips import Drop, write_rows
from stages.asr.device import best_device, choose_precision, explain_out_of_memory
from stages.asr.labels import LabelStyle
from stages.asr.mel import FRAMES_PER_SECOND
from stages.asr.model import SpeechModel, check_fit, folder_digest, load_model, save_model
from stages.asr.shards import Shards
from stages.params import Checkpoints, Compute, Train, load_params
from stages.runtime.errors import UserError
from stages.runtime.files import json_text, repository, write_json
from stages.runtime.progress import note, warn
from stages.training.checkpoints import PARTS, Checkpoint, CheckpointManager, LocalCheckpoints, locked, prune
from stages.training.ctc import count_too_long
from stages.training.libraries import check_libraries
from stages.training.metrics import RunningMetrics, compared
from stages.training.mirror import Mirror
from stages.training.pruning import remove_stale_results
from stages.training.ranks import current_ranks, joined_ranks, ranks_to_start, run_ranks
from stages.training.resume import find_start, is_recorded
from stages.training.run import describe_run
from stages.training.trackers import TrackedRun, check_installed, open_trackers
from stages.training.trainer import SpeechTrainer, regularisation, weights_of

PATH = click.Path(path_type=Path)
LONG_TEXTS = 0.05  # of the clips: more are worth a warning
RESULT = "result.json"  # in a run's folder: its metrics, where they are not those of an evaluation alone


@click.command()
@click.option("--params", type=PATH, required=True)
@click.option("--train", "train_shards", required=True, help="Folder of shards, or its URL in object storage.")
@click.option("--validation", required=True, help="The same.")
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
def main(params: Path, fresh: bool, adopt: str | None, **paths: Any) -> None:
    """Fine-tune the base model; keep the weights with the lowest validation WER. Goes on where a run was stopped."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else its sums differ; read when CUDA starts
    values = load_params(params)
    if count := ranks_to_start(values.compute.gpus):
        run_ranks(count)
        return
    for name in ("checkpoints", "trackers"):
        paths[name] = repository() / paths[name]
    with joined_ranks() as ranks:
        if not ranks.leads:
            assist(values.train, values.compute, Paths(**paths))
            return
        remove_stale_results(repository())
        result = train(values.train, values.compute, values.checkpoints, Paths(**paths), fresh, adopt)
    which = f"({result['weights']})" if "weights" in result else f"at step {result['best_step']} of {result['steps']}"
    click.echo(f"validation WER {result['validation_wer']:.1f} % {which}")


@dataclass(frozen=True)
class Paths:
    """What train reads and writes, as the options above."""

    train_shards: str | Path
    validation: str | Path
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

    fresh: pass over every checkpoint. adopt: the name, or its beginning, of another run to go on from. Of several ranks
    this is rank 0, which the others ``assist``. Raises UserError where a tracker's library is missing, the features do
    not fit the model, no clip is left, the loss leaves the finite numbers, the memory or the disk is full, or a
    checkpoint is there that fits in part only and nobody has said what to do with it.
    """
    check_installed(compute.report_to)
    check_libraries(settings)
    device, ranks, automatic = best_device(), current_ranks(), settings.precision == "auto"
    settings = with_precision(settings, device)
    if automatic:
        note(f"train.precision: auto is {settings.precision} here")
    model = load_base(settings, paths, device)
    clips, validation = load_clips(model, settings, paths)
    write_drops(clips, validation, paths.dropped)
    warn_of_long_texts(settings, model, clips)
    shards = {
        f"{split}/{name}": digest
        for split, data in (("train", clips), ("validation", validation))
        for name, digest in data.shards.digests.items()
    }
    run = describe_run(settings, shards, folder_digest(paths.pretrained), __name__, device, ranks.count)
    local = LocalCheckpoints(paths.checkpoints)
    folder = local.folder(run.name)
    with locked(folder):
        keep, remote = checkpoints.keep, checkpoints.mirror
        mirror = Mirror(repository(), remote, keep.remote, folder) if remote else None
        start = find_start(run, local, mirror.remote if mirror else None, fresh, adopt)
        if start and start.checkpoint.run == run.name and is_done(start.checkpoint, paths):
            prune(folder, 0)
            start = None
        write_json(folder / PARTS, run.parts)
        ranks.share(start)
        manager = CheckpointManager(folder, keep.local, mirror)
        trainer = SpeechTrainer(model, clips, validation, settings, compute, manager, paths.curves)
        trainer.add_callback(RunningMetrics(trainer.best, paths.metrics))
        with open_trackers(compute.report_to, TrackedRun(run, paths.trackers), paths.curves) as trackers:
            trainer.add_callback(trackers)
            trainer.run(start)
            result = finish(trainer, paths, folder, automatic)
        local.remove_finished(spare=run.name)
    return result


def assist(settings: Train, compute: Compute, paths: Paths) -> None:
    """Train as a rank other than 0, once that has the run: from where it starts, and writing nothing."""
    start = current_ranks().share(None)
    if start and not start.checkpoint.folder.exists():
        raise UserError(f"{start.checkpoint.folder} is not on {platform.node()}: all machines need one shared folder")
    device = best_device()
    settings = with_precision(settings, device)
    model = load_base(settings, paths, device)
    manager = CheckpointManager(paths.checkpoints, 0)
    SpeechTrainer(model, *load_clips(model, settings, paths), settings, compute, manager, paths.curves).run(start)


def with_precision(settings: Train, device: torch.device) -> Train:
    """The settings with the device's own precision where it is to be chosen."""
    return (
        settings
        if settings.precision != "auto"
        else settings.model_copy(update={"precision": choose_precision(device)})
    )


def load_base(settings: Train, paths: Paths, device: torch.device) -> SpeechModel:
    """The model to start from, as training wants it."""
    with explain_out_of_memory("close what else uses it, which nvidia-smi names, or set a smaller whisper.base"):
        model = load_model(paths.pretrained, device, **regularisation(settings))
    if settings.interpolate and model.untrained:
        raise UserError("train.interpolate mixes the base's weights in, and this base is untrained: set it to []")
    model.context, model.untrained = settings.context, False
    model.margin = round(settings.margin_seconds * FRAMES_PER_SECOND)
    model.whisper.generation_config.max_length = settings.generation_max_tokens
    return model


def load_clips(model: SpeechModel, settings: Train, paths: Paths) -> tuple[ClipDataset, ClipDataset]:
    """Train's and validation's clips."""
    clips = []
    style = LabelStyle(**settings.text.model_dump())
    augment = AugmentOptions(**settings.augment.model_dump())
    variation = Variation(augment, settings.timestamp_share, settings.prompt_share, settings.seed)
    for folder in (paths.train_shards, paths.validation):
        shards = Shards(folder)
        check_fit(model, shards, folder)
        clips.append(ClipDataset(shards, model, settings.max_label_tokens, style, variation))
        if not len(clips[-1]):
            if "label too long" not in clips[-1].dropped.values():
                raise UserError(f"no text of {folder} has anything to teach: see train.text, and the clips' texts")
            raise UserError(f"no clip of {folder} has a label within train.max_label_tokens: raise it")
    return clips[0], clips[1]


def warn_of_long_texts(settings: Train, model: SpeechModel, clips: ClipDataset) -> None:
    """Say so where the CTC loss passes many clips over, as with an alphabet whose letters are several tokens each."""
    lost = count_too_long(model, clips) if settings.ctc_weight else 0
    if lost > LONG_TEXTS * len(clips):
        warn(
            f"train.ctc_weight: {lost:,} of {len(clips):,} texts have more tokens than their audio has positions, so"
            " that the CTC loss passes them over: set whisper.scratch.merges: 500, or train.ctc_weight: 0"
        )


def write_drops(clips: ClipDataset, validation: ClipDataset, path: Path) -> None:
    """List the clips whose labels are too long or empty."""
    splits = (("train", clips), ("validation", validation))
    drops = [Drop(split, clip, reason) for split, data in splits for clip, reason in data.dropped.items()]
    write_rows(path, Drop, drops)


def is_done(checkpoint: Checkpoint, paths: Paths) -> bool:
    """Whether DVC has the result of a finished run already, and so was told to run the stage again."""
    if not checkpoint.state.finished:
        return False
    result, (best_step, best_wer) = checkpoint.folder.parent / RESULT, checkpoint.state.best[0]
    text = result.read_text(encoding="utf-8") if result.exists() else json_text(compared(best_wer, best_step))
    return is_recorded(paths.metrics, text)


def finish(trainer: SpeechTrainer, paths: Paths, run_folder: Path, automatic: bool) -> dict[str, Any]:
    """Write the best weights and the metrics, the precision among them where it was chosen here, and make room."""
    chosen, wers = trainer.take_best(lambda: weights_of(load_model(paths.pretrained).whisper))
    metrics: dict[str, Any] = compared(chosen.wer, trainer.best.step)
    metrics |= {"precision": trainer.settings.precision} if automatic else {}
    trainer.parent.check()
    shutil.rmtree(paths.tuned, ignore_errors=True)
    save_model(trainer.speech_model, paths.tuned)
    state = trainer.current_state()
    dropped = Counter([*trainer.clips.dropped.values(), *trainer.validation.dropped.values()])
    details: dict[str, Any] = {"steps": state.step, "dropped": dict(sorted(dropped.items()))}
    details |= {"adopted": state.adopted} if state.adopted else {}
    if state.pruned:
        details |= {"pruned": state.step}
        metrics |= {"pruned": state.step}  # for whoever compares it with runs to the end
    if len(wers) > 1:
        details |= {"weights": chosen.name, "candidates": {name: round(rate, 2) for name, rate in wers.items()}}
    if len(wers) > 1 or automatic:
        write_json(run_folder / RESULT, metrics)
    write_json(paths.metrics, metrics)
    write_json(paths.details, details)
    trainer.checkpoints.finish()
    return metrics | details

"""Train and validation shards + models/pretrained -> models/tuned, and the curves of how it went."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import click
from ruamel.yaml import YAML

from stages.asr.batches import ClipDataset
from stages.asr.clips import Drop, write_rows
from stages.asr.model import SpeechModel, best_device, check_fit, folder_digest, load_model, save_model
from stages.asr.shards import Shards
from stages.params import Checkpoints, Compute, Train, load_params
from stages.runtime.errors import UserError
from stages.runtime.files import json_text, write_json
from stages.training import run as runs
from stages.training.mirror import Mirror, Remote, warn
from stages.training.trainer import SpeechTrainer, Start, regularisation, say

FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--params", type=FOLDER, required=True)
@click.option("--train", "train_shards", type=FOLDER, required=True)
@click.option("--validation", type=FOLDER, required=True)
@click.option("--pretrained", type=FOLDER, required=True, help="The model to start from.")
@click.option("--checkpoints", type=FOLDER, required=True, help="Store of unfinished runs, below DVC_ROOT; no out.")
@click.option("--tuned", type=FOLDER, required=True, help="Folder for the best model.")
@click.option("--curves", type=FOLDER, required=True, help="Folder for training.tsv and validation.tsv.")
@click.option("--dropped", type=FOLDER, required=True, help="Table of what was left out.")
@click.option("--metrics", type=FOLDER, required=True)
@click.option("--fresh", is_flag=True, envvar="VISKA_FRESH", help="Start anew, whatever checkpoints there are.")
@click.option("--adopt", envvar="VISKA_ADOPT", metavar="RUN", help="Go on from another run's checkpoint.")
def main(params: Path, fresh: bool, adopt: str | None, **paths: Path) -> None:
    """Fine-tune the base model; keep the weights with the lowest validation WER. Goes on where a run was stopped."""
    values = load_params(params)
    paths["checkpoints"] = root() / paths["checkpoints"]
    result = train(values.train, values.compute, values.checkpoints, Paths(**paths), fresh, adopt)
    click.echo(f"validation WER {result['validation_wer']:.1f} % at step {result['best_step']} of {result['steps']}")


def root() -> Path:
    """The repository that stays: an experiment runs in a folder of its own, which is deleted when it fails."""
    return Path(os.environ.get("DVC_ROOT", "."))


@dataclass(frozen=True)
class Paths:
    """What train reads and writes, as the options above."""

    train_shards: Path
    validation: Path
    pretrained: Path
    checkpoints: Path
    tuned: Path
    curves: Path
    dropped: Path
    metrics: Path


def train(
    settings: Train,
    compute: Compute,
    keep: Checkpoints,
    paths: Paths,
    fresh: bool = False,
    adopt: str | None = None,
) -> dict:
    """Train, and write everything that ``paths`` names; returns what metrics holds.

    fresh: pass over every checkpoint. adopt: the name, or its beginning, of another run to go on from. Raises UserError
    where the features do not fit the model, no clip is left, the loss leaves the finite numbers, the disk is full, or
    a checkpoint is there that fits in part only and nobody has said what to do with it.
    """
    speech = load_model(paths.pretrained, best_device(), **regularisation(settings))
    speech.context, speech.untrained = settings.context, False
    speech.whisper.generation_config.max_length = settings.generation_max_tokens
    clips = load_clips(speech, settings, paths)
    run = runs.describe(
        settings.model_dump(mode="json"),
        [paths.train_shards, paths.validation],
        folder_digest(paths.pretrained),
        __name__,
    )
    folder = run.folder(paths.checkpoints)
    with runs.locked(folder, say):
        remote = connect(keep.mirror)
        start = find_start(run, paths, remote, fresh, adopt)
        write_json(folder / runs.PARTS, run.parts)
        mirror = Mirror(root(), keep.mirror, folder, keep.keep.remote, quiet=not remote) if keep.mirror else None
        trainer = SpeechTrainer(speech, *clips, settings, compute, keep.keep.local, folder, mirror, paths.curves)
        trainer.run(start)
        return finish(trainer, paths)


def connect(mirror: str | None) -> Remote | None:
    """The remote with the checkpoints, where one is named and can be reached."""
    if not mirror:
        return None
    try:
        remote = Remote(root(), mirror)
        remote.runs()  # asks it something
        return remote
    except UserError:
        raise
    except Exception as error:  # a remote's libraries raise anything
        warn(f"remote {mirror} could not be reached: {error}; training goes on without it")
        return None


def load_clips(speech: SpeechModel, settings: Train, paths: Paths) -> list[ClipDataset]:
    """Train's and validation's clips; lists those whose labels are too long."""
    clips, drops = [], []
    for folder in (paths.train_shards, paths.validation):
        shards = Shards(folder)
        check_fit(speech, shards, folder)
        clips.append(ClipDataset(shards, speech, settings.max_label_tokens))
        drops += [Drop(folder.name, clip, "label too long") for clip in clips[-1].dropped]
        if not len(clips[-1]):
            raise UserError(f"no clip of {folder} has a label within train.max_label_tokens: raise it")
    write_rows(paths.dropped, Drop, drops)
    return clips


def find_start(run: runs.Run, paths: Paths, remote: Remote | None, fresh: bool, adopt: str | None) -> Start | None:
    """The checkpoint to go on from, the newest here or on the remote; says why others do not fit.

    Raises UserError where only the remote has a run, of the same params, that differs in something else.
    """
    store, folder = paths.checkpoints, run.folder(paths.checkpoints)
    if fresh:
        runs.prune(folder, 0)
        return None
    fetch_newer(remote, run.name, folder)
    if newest := runs.newest_whole(folder, say):
        start = Start(newest)
        if not is_recorded(start, paths):
            return start
        runs.prune(folder, 0)  # DVC has this very result, and runs the stage all the same: it was told to (--force)
        return None
    if adopt:
        return adopted(run, store, remote, adopt)
    others = sorted(store.glob(f"*/{runs.PARTS}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for other in (path.parent for path in others):
        if found := runs.checkpoints(other):
            differs = run.differences(json.loads((other / runs.PARTS).read_text(encoding="utf-8")))
            where = misfit(runs.short(other.name), runs.step_of(found[0]), differs)
            say(f"starting run {runs.short(run.name)} afresh: {where}")
            return None
    stop_at_strangers(run, remote)
    return None


def fetch_newer(remote: Remote | None, name: str, folder: Path) -> None:
    """Bring a run's newest copy from the remote where none here is as new; a remote that is down is passed over."""
    try:
        for copy in remote.copies(name) if remote else []:
            if any(runs.step_of(path) >= copy.step for path in runs.checkpoints(folder)):
                return
            try:
                say(f"fetching the checkpoint of step {copy.step} from {remote.name}, {copy.size / 1e6:.0f} MB")
                remote.download(copy, folder)
                return
            except UserError as error:
                say(f"{error}; taking the one before it")
    except Exception as error:  # a remote's libraries raise anything
        warn(f"remote {remote.name} could not be read: {error}; going on with what is here")


def misfit(name: str, step: int, differs: dict[str, list[str]]) -> str:
    """Why another run's checkpoint is not taken."""
    details = "; ".join(f"{part} ({', '.join(lines)})" for part, lines in differs.items())
    advice = "" if "params" in differs else f"; VISKA_ADOPT={name} takes it all the same"
    return f"the checkpoint of run {name} at step {step} differs in {details}{advice}"


def stop_at_strangers(run: runs.Run, remote: Remote | None) -> None:
    """Raise UserError where another machine left off with the same params: to start anew would throw its work away."""
    try:
        others = [name for name in remote.runs() if name != run.name] if remote else []
        found = [(name, copies[0].step) for name in others if (copies := remote.copies(name))]
        strangers = [(name, step, run.differences(remote.parts(name))) for name, step in found]
    except Exception as error:  # a remote's libraries raise anything
        warn(f"remote {remote.name} could not be read: {error}; starting afresh")
        return
    for name, step, differs in strangers:
        if "params" not in differs:
            where = misfit(runs.short(name), step, differs)
            raise UserError(f"on remote {remote.name}, {where}; VISKA_FRESH=1 starts anew")


def adopted(run: runs.Run, store: Path, remote: Remote | None, name: str) -> Start:
    """Another run's newest checkpoint, from here or the remote, where that run had the same params."""
    elsewhere = [other for other in (remote.runs() if remote else []) if other.startswith(name)]
    here = [path.parent.name for path in store.glob(f"{name}*/{runs.PARTS}")]
    found = sorted({*elsewhere, *here} - {run.name})
    if len(found) != 1:
        raise UserError(f"{len(found)} other runs are named {name}: python -m tools.checkpoints list shows them")
    folder = store / found[0]
    if not (folder / runs.PARTS).exists():
        write_json(folder / runs.PARTS, remote.parts(found[0]))
    fetch_newer(remote, found[0], folder)
    newest = runs.newest_whole(folder, say)
    if newest is None:
        raise UserError(f"run {name} has no checkpoint that is whole")
    differs = run.differences(json.loads((folder / runs.PARTS).read_text(encoding="utf-8")))
    if "params" in differs:
        raise UserError(f"run {name} cannot be adopted: it differs in params ({', '.join(differs['params'])})")
    return Start(newest, {"run": runs.short(found[0]), "differs": sorted(differs)})


def is_recorded(start: Start, paths: Paths) -> bool:
    """Whether a checkpoint is a finished run's whose result stands in dvc.lock already."""
    lock = Path("dvc.lock")
    if not start.state["finished"] or not lock.exists():
        return False
    stages = (YAML(typ="safe").load(lock) or {}).get("stages", {})
    recorded = {out["path"]: out.get("md5") for out in stages.get("train", {}).get("outs", [])}
    text = json_text(result_of(start.state, paths))
    return recorded.get(str(paths.metrics)) == hashlib.md5(text.encode()).hexdigest()


def result_of(state: dict, paths: Paths) -> dict:
    """What metrics holds of a run in this state."""
    dropped = len(paths.dropped.read_text(encoding="utf-8").splitlines()) - 1
    return {
        "validation_wer": round(state["best_wer"], 2),
        "best_step": state["best_step"],
        "steps": state["step"],
        "dropped": {"label too long": dropped} if dropped else {},
    } | ({"adopted": state["adopted"]} if state["adopted"] else {})


def finish(trainer: SpeechTrainer, paths: Paths) -> dict:
    """Write the best weights and the metrics, and make room.

    The run's last checkpoint stays, for DVC has not recorded the result yet; those of runs that finished before go.
    """
    trainer.parent.check()
    trainer.model.load_state_dict(trainer.best_weights, strict=False)  # the tied projection is not among them
    shutil.rmtree(paths.tuned, ignore_errors=True)
    save_model(trainer.speech, paths.tuned)
    result = result_of(trainer.current_state(), paths)
    write_json(paths.metrics, result)
    if trainer.mirror:
        trainer.mirror.finish()
    runs.prune(trainer.folder, 1)
    for other in paths.checkpoints.glob("*/"):
        if other.name != trainer.folder.name and not runs.in_use(other):
            newest = runs.checkpoints(other)[:1]
            if newest and Start(newest[0]).state["finished"]:
                runs.remove(other)
    return result

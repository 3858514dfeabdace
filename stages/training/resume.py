"""Where a run starts: at its newest checkpoint that is whole, at an adopted run's, or afresh."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.runtime.errors import UserError
from stages.runtime.progress import note, warn
from stages.training.checkpoints import Checkpoint, CheckpointStore, DamagedError, LocalCheckpoints, prune
from stages.training.mirror import RemoteCheckpoints, UnavailableError
from stages.training.run import Run, short_name


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from. adopted: the run it is of and what differs, where that is another one."""

    checkpoint: Checkpoint
    adopted: dict[str, Any] | None = None


def find_start(
    run: Run, local: LocalCheckpoints, remote: RemoteCheckpoints | None, fresh: bool, adopt: str | None
) -> Start | None:
    """Where the run goes on, the newest here or on the remote; says why other runs' checkpoints do not fit.

    fresh: pass over every checkpoint. adopt: the name, or its beginning, of another run. A remote that fails is passed
    over with a warning. Raises UserError where only the remote has a run, of the same params, that differs in something
    else, and nobody has said what to do with it.
    """
    if fresh:
        prune(local.folder(run.name), 0)
        return None
    try:
        return search(run, [local, *([remote] if remote else [])], adopt)
    except UnavailableError as error:
        warn(f"{error}; going on with what is here")
        return search(run, [local], adopt)


def search(run: Run, stores: Sequence[CheckpointStore], adopt: str | None) -> Start | None:
    """The start among these stores, of which the first is here."""
    if checkpoint := newest_whole(run.name, stores):
        return Start(checkpoint)
    if adopt:
        return adopted(run, stores, adopt)
    here, *elsewhere = stores
    for other, step, differences in foreign_runs(run, here):
        note(f"starting run {short_name(run.name)} afresh: {describe_mismatch(other, step, differences)}")
        return None
    for store in elsewhere:
        for other, step, differences in foreign_runs(run, store):
            if "params" not in differences:  # to start afresh would throw another machine's work away
                mismatch = describe_mismatch(other, step, differences)
                raise UserError(f"on remote {store.name}, {mismatch}; VISKA_FRESH=1 starts anew")
    return None


def newest_whole(run: str, stores: Sequence[CheckpointStore]) -> Checkpoint | None:
    """A run's newest checkpoint that is undamaged, of the same step the one that is here; says which it passes over."""
    found = [(step, -place, store) for place, store in enumerate(stores) for step in store.steps(run)]
    for step, _, store in sorted(found, key=lambda entry: entry[:2], reverse=True):
        try:
            return store.fetch(run, step)
        except DamagedError as error:
            note(f"{error}; taking the one before it")
    return None


def foreign_runs(run: Run, store: CheckpointStore) -> list[tuple[str, int, dict[str, list[str]]]]:
    """(name, newest step, differences) of every other run of a store that has checkpoints."""
    others = [(name, store.steps(name)) for name in store.runs() if name != run.name]
    return [(name, steps[0], run.differences(store.parts(name))) for name, steps in others if steps]


def describe_mismatch(name: str, step: int, differences: dict[str, list[str]]) -> str:
    """Why another run's checkpoint is not taken."""
    details = "; ".join(f"{part} ({', '.join(lines)})" for part, lines in differences.items())
    advice = "" if "params" in differences else f"; VISKA_ADOPT={short_name(name)} takes it all the same"
    return f"the checkpoint of run {short_name(name)} at step {step} differs in {details}{advice}"


def adopted(run: Run, stores: Sequence[CheckpointStore], beginning: str) -> Start:
    """Another run's newest checkpoint, where that run had the same params."""
    named = {name: store for store in stores[::-1] for name in store.runs() if name.startswith(beginning)}
    named.pop(run.name, None)
    if len(named) != 1:
        raise UserError(f"{len(named)} other runs are named {beginning}: python -m tools.checkpoints list shows them")
    ((name, store),) = named.items()
    differences = run.differences(store.parts(name))
    if "params" in differences:
        params = ", ".join(differences["params"])
        raise UserError(f"run {beginning} cannot be adopted: it differs in params ({params})")
    checkpoint = newest_whole(name, stores)
    if checkpoint is None:
        raise UserError(f"run {beginning} has no checkpoint that is whole")
    return Start(checkpoint, {"run": short_name(name), "differs": sorted(differences)})


def is_recorded(metrics: Path, text: str, lock: Path = Path("dvc.lock")) -> bool:
    """Whether dvc.lock names these very metrics as train's: then DVC was told to run the stage all the same."""
    if not lock.exists():
        return False
    stages = (YAML(typ="safe").load(lock) or {}).get("stages", {})
    recorded = {out["path"]: out.get("md5") for out in stages.get("train", {}).get("outs", [])}
    return bool(recorded.get(str(metrics)) == hashlib.md5(text.encode()).hexdigest())

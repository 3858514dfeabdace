"""A training as a trial of a sweep: it reports each validation WER to the study, which may stop a bad one early.

`python -m tools.sweep` says in an environment variable where the study is; without it train knows of no sweep.
"""

import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.runtime.files import json_text
from stages.runtime.progress import note, warn

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

VARIABLE = "VISKA_SWEEP"


@dataclass(frozen=True)
class PruningRule:
    """A trial goes on while its WER is among the best ``keep`` (a share) of the finished trials' at the same step.

    None is stopped before ``startup_trials`` have finished, nor before step ``warmup_steps``.
    """

    keep: float
    startup_trials: int
    warmup_steps: int


@dataclass(frozen=True)
class TrialSettings:
    """What a sweep tells the training that it runs.

    storage, study, trial: where the study is, its name, and Optuna's id of the trial. rule: None never stops it.
    stale: files below the working directory that describe another model than the one to be trained.
    """

    storage: str
    study: str
    trial: int | None
    rule: PruningRule | None
    stale: tuple[str, ...]

    def to_json(self) -> str:
        return json_text(asdict(self))

    @staticmethod
    def from_environment() -> "TrialSettings | None":
        """None outside of a sweep."""
        text = os.environ.get(VARIABLE)
        if not text:
            return None
        values = json.loads(text)
        rule = PruningRule(**values["rule"]) if values["rule"] else None
        return TrialSettings(**(values | {"rule": rule, "stale": tuple(values["stale"])}))


def remove_stale_results(repository: Path) -> None:
    """Delete what a trial's folder holds of the evaluation of another model, so that nobody reads it as the trial's.

    Only in an experiment's own folder, never in the repository.
    """
    settings = TrialSettings.from_environment()
    if settings is None or Path.cwd() == repository.resolve():
        return
    for path in map(Path, settings.stale):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_pruning() -> "Pruning | None":
    """The callback of a trial that may be stopped; None outside of a sweep, or where the trial is to run to its end."""
    settings = TrialSettings.from_environment()
    return Pruning(settings) if settings and settings.trial is not None else None


class Pruning(TrainerCallback):
    """Reports to the study, and stops the training where it says so. pruned: it has."""

    def __init__(self, settings: TrialSettings):
        self.settings, self.pruned, self.warned = settings, False, False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Stops with a checkpoint, from which a run outside of the sweep goes on."""
        wer: float = given["metrics"]["eval_wer"]
        if self.report(wer, state.global_step) and state.global_step < state.max_steps:
            note(f"pruned at step {state.global_step}: validation WER {wer:.1f} % is not among the sweep's best there")
            self.pruned = control.should_training_stop = control.should_save = True

    def report(self, wer: float, step: int) -> bool:
        """Tell the study; returns whether the trial should be stopped."""
        from optuna.trial import Trial

        assert self.settings.trial is not None
        try:
            study = open_study(self.settings.storage, self.settings.study, self.settings.rule, create=False)
            trial = Trial(study, self.settings.trial)
            if step not in study.get_trials(deepcopy=False)[trial.number].intermediate_values:
                trial.report(wer, step)  # else a resumed training says again what it said
            return bool(self.settings.rule) and trial.should_prune()
        except Exception as error:  # a storage's libraries raise anything, and no training is to end for it
            if not self.warned:
                warn(f"the sweep's study cannot be reached: {error}; training goes on, and is not pruned")
            self.warned = True
            return False


def open_study(storage: str, name: str, rule: PruningRule | None, create: bool = True) -> "Study":
    """A sweep's study, made where it is missing, if so told. storage: a database URL, or a journal file's path."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if rule:
        pruner = optuna.pruners.PercentilePruner(100 * rule.keep, rule.startup_trials, rule.warmup_steps)
    sampler = optuna.samplers.RandomSampler()  # which a sweep replaces; a training draws nothing
    place = open_storage(storage)
    if not create:
        return optuna.load_study(study_name=name, storage=place, sampler=sampler, pruner=pruner)
    return optuna.create_study(
        study_name=name, storage=place, sampler=sampler, pruner=pruner, direction="minimize", load_if_exists=True
    )


def open_storage(place: str) -> "BaseStorage | str":
    """Optuna's storage at a database URL, or in a journal file."""
    if "://" in place:
        return place
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    class KernelLock(JournalFileOpenLock):
        """A lock that the system gives back when its holder dies; Optuna's own waits half a minute for that."""

        def acquire(self) -> bool:
            self.descriptor = os.open(f"{place}.lock", os.O_WRONLY | os.O_CREAT)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            return True

        def release(self) -> None:
            os.close(self.descriptor)

    Path(place).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(place, lock_obj=KernelLock(place)))

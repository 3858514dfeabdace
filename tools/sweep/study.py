"""The study: which trials there are, who runs which, and what is tried next.

A trial is Optuna's, RUNNING until its experiment is there. Whoever runs it holds a lock, as does the `dvc` that it
started; a trial without one was left by a process that died, and goes to whoever asks next. Locks reach no other
machine, so trials also carry their host and a sign of life.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from stages.runtime.errors import UserError, one_line
from stages.runtime.progress import note
from stages.training.pruning import PruningRule, open_study
from stages.training.run import Run
from tools.sweep.experiments import Outcome
from tools.sweep.plan import Dimension, Plan, Values, apply, starting_points

HOST, ALIVE, SECONDS, ORIGIN = "host", "alive", "seconds", "definition"  # attributes of trials, and of the study
NAME, COMMIT, WER, STEPS, REASON, LEFT_OUT = "experiment", "commit", "wer", "steps", "reason", "left out"
SIGN_EVERY, STALE = 60, 900  # seconds between two signs of life, and without one until another machine's trial is dead
DIGITS = 3  # significant, of sampled numbers: for names that can be read
DRAWS = 50  # of a trial that is not one already
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Assignment:
    """A trial that this process alone runs, while ``lock`` is open. values: of params.yaml, without the overrides."""

    trial: int  # Optuna's id
    number: int
    name: str
    values: Values
    lock: IO[str]


class RepeatableSampler(BaseSampler):
    """Another sampler, seeded for each trial by its number, so that no interruption has it draw the same again.

    Its numbers have few digits.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int):
        self.make, self.seed = make, seed
        self.inner = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.inner = self.make(self.seed + 1000 * trial.number)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = self.inner.sample_relative(study, trial, search_space)
        return {name: shorten(value, search_space[name]) for name, value in drawn.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        drawn = self.inner.sample_independent(study, trial, param_name, param_distribution)
        return shorten(drawn, param_distribution)


def shorten(value: Any, distribution: BaseDistribution) -> Any:
    """A number with few digits, within its bounds; anything else as it is."""
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), distribution.low), distribution.high)


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in Optuna's words."""
    if dimension.choices is not None:
        return CategoricalDistribution(dimension.choices)
    assert dimension.low is not None and dimension.high is not None
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), dimension.log, int(dimension.step or 1))
    return FloatDistribution(dimension.low, dimension.high, dimension.log, dimension.step)


def sampler(plan: Plan) -> BaseSampler:
    """The plan's sampler."""
    settings = plan.sampler
    if settings.kind == "random":
        return RepeatableSampler(RandomSampler, settings.seed)
    return RepeatableSampler(
        lambda seed: TPESampler(n_startup_trials=settings.startup_trials, seed=seed), settings.seed
    )


def experiment_name(values: Values, origin: str) -> str:
    """Readable, and another one for other values, or for a sweep of other code, data or parameters (``origin``)."""
    words = []
    for key, value in values.items():
        last = key.rpartition(".")[2]
        short = "".join(word[0] for word in last.split("_")) if "_" in last else last
        text = spell_number(value) if isinstance(value, float) else str(value)
        words.append(re.sub(r"[^\w.+-]+|\.\.+", "-", f"{short}{text}"))
    digest = hashlib.sha256(json.dumps([origin, values], sort_keys=True).encode()).hexdigest()[:4]
    return "-".join(["sweep", *words, digest])


def spell_number(value: float) -> str:
    """3e-4 rather than 0.0003; 0.05 as it is."""
    if value == 0 or 0.01 <= abs(value) < 10_000:
        return f"{value:g}"
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


class Sweep:
    """A study that several processes work on, here and on other machines that its storage is open to.

    folder: for locks and logs. origin: what the study is of; raises UserError where it was begun with another.
    """

    def __init__(self, storage: str, name: str, folder: Path, plan: Plan, origin: Run, params: Path):
        self.plan, self.folder, self.origin, self.params = plan, folder, origin, params
        self.storage, self.name = storage, name
        folder.mkdir(parents=True, exist_ok=True)
        self.local, self.host = "://" not in storage, socket.gethostname()
        pruner = plan.pruner
        self.rule = PruningRule(pruner.keep, pruner.startup_trials, pruner.warmup_steps) if pruner else None
        self.space = {key: distribution(dimension) for key, dimension in plan.space.items()}
        with self.deciding():
            try:
                self.study = open_study(storage, name, self.rule)
            except Exception as error:  # a database's libraries raise anything
                raise UserError(f"the study {name} in {storage} cannot be opened: {one_line(error)}") from None
            self.study.sampler = sampler(plan)
            self.begin(starting_points(plan, params))

    def begin(self, start: list[Values]) -> None:
        """Put the first trials into a new study; raises UserError for one that was begun otherwise."""
        before = self.study.user_attrs.get(ORIGIN)
        if before is None:
            for values in start:
                self.study.enqueue_trial(values, skip_if_exists=True)
            self.study.set_user_attr(ORIGIN, self.origin.parts)
        elif differences := self.origin.differences(before):
            details = "; ".join(f"{part} ({', '.join(lines)})" for part, lines in differences.items())
            raise UserError(
                f"the sweep {self.name} was begun with other values, so that its trials would not compare: {details}. "
                f"Set them back, or begin another one: --study NAME"
            )

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """One process of this machine at a time."""
        with (self.folder / "deciding.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Those that count, in the order they were begun."""
        found = self.study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in found if LEFT_OUT not in trial.user_attrs]

    def next(self) -> Assignment | None:
        """A trial to run: one that a dead process left, else a new one; None once all are done.

        Waits while the only ones left are other processes'.
        """
        while True:
            with self.deciding():
                if found := self.abandoned():
                    return found
                held = self.orphans()
                if not held and (found := self.ask()):
                    return found
                held = held or self.trials(TrialState.RUNNING)
            if not held:
                return None
            self.wait_for(held[0])

    def abandoned(self) -> Assignment | None:
        """A trial that nobody runs any more; None where there is none."""
        for trial in self.trials(TrialState.RUNNING):
            if self.is_here(trial):
                lock = self.lock(trial.number)
                if lock and (found := self.assign(trial, lock)):
                    return found
            elif self.seconds_silent(trial) > STALE:
                self.pass_on(trial)
        return None

    def orphans(self) -> list[FrozenTrial]:
        """Trials whose sweep is dead while its `dvc` goes on; to begin another beside one could take its memory."""
        here = [trial for trial in self.trials(TrialState.RUNNING) if self.is_here(trial)]
        return [trial for trial in here if not psutil.pid_exists(self.holder(trial.number))]

    def is_here(self, trial: FrozenTrial) -> bool:
        """Whether this machine runs it. A journal file without a host's name is this machine's too."""
        return bool(trial.user_attrs.get(HOST, self.host if self.local else None) == self.host)

    def ask(self) -> Assignment | None:
        """A new trial; None where the plan has no more."""
        for _ in range(DRAWS):
            if not self.wanted():
                return None
            asked = self.study.ask()
            asked.set_user_attr(HOST, self.host)
            lock = self.lock(asked.number)
            assert lock, "a new trial is nobody else's"
            found = self.assign(self.study.get_trials(deepcopy=False)[asked.number], lock)
            if found:
                return found
        note(f"{DRAWS} draws gave no new trial that params.yaml allows: the space seems to have no more")
        return None

    def wanted(self) -> bool:
        """Whether the plan has trials and hours left."""
        begun = self.trials(TrialState.RUNNING, *DONE)
        hours = sum(trial.user_attrs.get(SECONDS, 0) for trial in begun) / 3600
        return len(begun) < self.plan.trials and (self.plan.hours is None or hours < self.plan.hours)

    def assign(self, trial: FrozenTrial, lock: IO[str]) -> Assignment | None:
        """Draw what of a trial's values is not drawn yet; None, and out of the study, where it would be in vain."""
        drawn = optuna.trial.Trial(self.study, trial._trial_id)
        values = {key: drawn._suggest(key, space) for key, space in self.space.items()}
        if problem := self.problem(trial.number, values):
            drawn.set_user_attr(LEFT_OUT, problem)
            self.study.tell(trial.number, state=TrialState.FAIL)
            lock.close()
            return None
        # With the rule, so that what another sweep pruned is not taken for this one's trial.
        name = trial.user_attrs.get(NAME) or experiment_name(values, f"{self.origin.name} {self.rule}")
        drawn.set_user_attr(NAME, name)
        drawn.set_user_attr(HOST, self.host)
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        return Assignment(trial._trial_id, trial.number, name, values, lock)

    def problem(self, number: int, values: Values) -> str | None:
        """Why a trial of these values would be in vain; None where it would not."""
        for other in self.trials(TrialState.RUNNING, *DONE):
            if other.number < number and other.params == values:
                return f"repeats trial {other.number}"
        try:
            apply(self.params, self.plan.overrides | values)
        except UserError as error:
            return one_line(error)
        return None

    def lock_path(self, number: int) -> Path:
        return self.folder / f"trial-{number:04}.lock"

    def lock(self, number: int) -> IO[str] | None:
        """A trial's lock, or None where another process has it."""
        file = self.lock_path(number).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        return file

    def holder(self, number: int) -> int:
        """The process that ran a trial last."""
        text = self.lock_path(number).read_text().strip()
        return int(text) if text else os.getpid()  # not written yet: it lives

    def wait_for(self, trial: FrozenTrial) -> None:
        """Wait until another process is done with a trial, or dead."""
        host, name = trial.user_attrs.get(HOST), trial.user_attrs.get(NAME, f"trial {trial.number}")
        note(f"waiting for {name}, which another process{'' if self.is_here(trial) else f' on {host}'} runs")
        if self.is_here(trial):
            with self.lock_path(trial.number).open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
        else:
            time.sleep(SIGN_EVERY / 4)

    def seconds_silent(self, trial: FrozenTrial) -> float:
        """Since a trial's last sign of life."""
        begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return time.time() - float(trial.user_attrs.get(ALIVE, begun))

    def pass_on(self, trial: FrozenTrial) -> None:
        """Have another machine's dead trial begun anew; where two processes try, the study lets one."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            self.study._storage.set_trial_user_attr(trial._trial_id, LEFT_OUT, "its machine was silent")
            self.study.tell(trial.number, state=TrialState.FAIL)
            if trial.params.keys() == self.space.keys():
                self.study.enqueue_trial(trial.params)

    def sign(self, trial: int, seconds: float) -> None:
        """A sign of life, and how long a trial has taken so far, by all that ran it."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.study._storage.set_trial_user_attr(trial, ALIVE, time.time())
            self.study._storage.set_trial_user_attr(trial, SECONDS, round(seconds, 1))

    def seconds_of(self, number: int) -> float:
        """How long a trial took before."""
        return float(self.study.get_trials(deepcopy=False)[number].user_attrs.get(SECONDS, 0))

    def tell(self, assignment: Assignment, outcome: Outcome | None, reason: str = "") -> None:
        """What became of a trial; None: it failed, for a reason."""
        storage, trial = self.study._storage, assignment.trial
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):  # passed on meanwhile
            if outcome is None:
                storage.set_trial_user_attr(trial, REASON, reason)
                self.study.tell(assignment.number, state=TrialState.FAIL)
                return
            storage.set_trial_user_attr(trial, COMMIT, outcome.commit)
            storage.set_trial_user_attr(trial, WER, outcome.wer)
            storage.set_trial_user_attr(trial, STEPS, outcome.steps)
            if outcome.pruned is None:
                self.study.tell(assignment.number, outcome.wer)
            else:
                self.study.tell(assignment.number, state=TrialState.PRUNED)

"""Running a sweep's trials, one after the other, until its study has no more."""

import re
import time
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from stages.runtime.errors import UserError
from stages.runtime.progress import ProgressBar, note
from stages.training.pruning import TrialSettings
from tools.sweep.experiments import FailedError, Outcome, run_experiment, stale_results
from tools.sweep.study import DONE, NAME, SIGN_EVERY, STEPS, WER, Assignment, Sweep

STEP = re.compile(r"(?:train|validate) +\d+/\d+ .*")  # train's own line, with loss, WER and time left
IN_A_ROW = 3  # failures, after which something else than the parameters must be wrong


def run_trials(root: Path, sweep: Sweep) -> None:
    """Run trials until there are no more; raises UserError where several in a row failed."""
    failures = 0
    with ProgressBar(total=sweep.plan.trials, initial=len(sweep.trials(*DONE)), unit="trial", desc="sweep") as bar:
        while assignment := sweep.next():
            with assignment.lock:
                try:
                    outcome = run_trial(root, sweep, assignment, bar)
                except FailedError as error:
                    sweep.tell(assignment, None, str(error))
                    note(f"\n{assignment.name} failed: {error}")
                    failures += 1
                    if failures == IN_A_ROW:
                        raise UserError(f"{IN_A_ROW} trials in a row failed, the last for: {error}") from None
                else:
                    failures = 0
                    sweep.tell(assignment, outcome)
                    note(f"\n{assignment.name}: {describe(outcome)}")
            bar.n = len(sweep.trials(*DONE))  # with those of other processes
            bar.refresh()


def run_trial(root: Path, sweep: Sweep, assignment: Assignment, bar: ProgressBar) -> Outcome:
    """Run one trial to its end, giving signs of life."""
    begun, before = time.monotonic(), sweep.seconds_of(assignment.number)
    signed = -float(SIGN_EVERY)

    def watch(line: str) -> None:
        nonlocal signed
        passed = time.monotonic() - begun
        if found := STEP.search(line):
            bar.set_postfix_str(f"{' '.join(found[0].split())}, {assignment.name}", refresh=False)
        bar.update(0)  # draws, but not each time
        if passed - signed >= SIGN_EVERY:
            sweep.sign(assignment.trial, before + passed)
            signed = passed

    settings = TrialSettings(sweep.storage, sweep.name, assignment.trial, sweep.rule, stale_results(root))
    log = sweep.folder / f"{assignment.name}.log"
    values = sweep.plan.overrides | assignment.values
    outcome = run_experiment(root, assignment.name, values, settings, log, assignment.lock.fileno(), watch)
    sweep.sign(assignment.trial, before + time.monotonic() - begun)
    return outcome


def describe(outcome: Outcome) -> str:
    """A trial's result in a phrase."""
    wer = f"validation WER {outcome.wer:.2f} %"
    return (
        f"{wer}, pruned at step {outcome.pruned}"
        if outcome.pruned is not None
        else f"{wer} after {outcome.steps} steps"
    )


def ranking(sweep: Sweep) -> list[FrozenTrial]:
    """The trials that ran to their end, the best first."""
    return sorted(sweep.trials(TrialState.COMPLETE), key=lambda trial: (trial.value, trial.number))


def summary(sweep: Sweep) -> str:
    """The trials in a table, the best first; the pruned after those that ran to their end."""
    ranked = [*ranking(sweep), *sorted(sweep.trials(TrialState.PRUNED), key=lambda trial: trial.user_attrs[WER])]
    lines = [f"{'validation WER, %':>17}{'steps':>8}  trial"]
    for trial in ranked:
        attributes = trial.user_attrs
        pruned = "  pruned" if trial.state == TrialState.PRUNED else ""
        lines.append(f"{attributes[WER]:>17.2f}{attributes[STEPS]:>8}  {attributes[NAME]}{pruned}")
    failed = sweep.trials(TrialState.FAIL)
    lines += [f"{'failed':>17}{'':>8}  {trial.user_attrs[NAME]}" for trial in failed]
    return "\n".join(lines)

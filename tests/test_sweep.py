"""``python -m tools.sweep``: Optuna's study alone, trainings that it prunes, and trials under a real DVC."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState, create_trial
from ruamel.yaml import YAML

from stages.params import load_params
from stages.runtime.errors import UserError
from stages.train import Paths, train
from stages.training.checkpoints import newest_first
from stages.training.pruning import VARIABLE, PruningRule, TrialSettings, open_study
from stages.training.run import Run
from tests.support.material import ROOT, write_params
from tests.support.process import PATIENCE
from tests.support.repository import commit, environment, run
from tools.recipe import apply_values, recipe_values
from tools.sweep.__main__ import propose
from tools.sweep.experiments import Outcome, check_ready, find_outcome, run_experiment, stale_results
from tools.sweep.plan import Plan, find_plan, load_plan
from tools.sweep.study import ALIVE, HOST, Assignment, Sweep, experiment_name

RULE = PruningRule(keep=0.5, startup_trials=1, warmup_steps=0)
RATE, DECAY = "train.learning_rate", "train.weight_decay"
SPACE = {RATE: {"low": 1e-4, "high": 1e-2, "log": True}, DECAY: {"choices": [0.0, 0.01, 0.1]}}


def plan_of(trials: int = 4, **more) -> Plan:
    return Plan.model_validate({"space": SPACE, "sampler": {"startup_trials": 2}, "trials": trials} | more)


# The study


@pytest.fixture
def sweep(tmp_path, settings):
    """Call for a sweep, the same one each time; as another process's, but in this one."""
    params = settings()

    def call(plan: Plan | None = None, origin: str = "here", name: str = "s", scheme: str = "") -> Sweep:
        parts, storage = {"params": {"of": origin}}, f"{scheme}{tmp_path}/{name}.log"
        return Sweep(storage, name, tmp_path / name, plan or plan_of(), Run(parts), params)

    return call


def finish(sweep: Sweep, assignment: Assignment) -> None:
    """A result that gets worse the further the rate is from 2e-3."""
    sweep.tell(assignment, Outcome("c" * 40, 1000 * abs(assignment.values[RATE] - 2e-3), 4, None))
    assignment.lock.close()


def test_the_present_values_come_first_and_an_interrupted_sweep_draws_what_a_whole_one_does(sweep):
    whole, drawn = sweep(name="whole"), []
    while assignment := whole.next():
        drawn.append(assignment.values)
        finish(whole, assignment)
    assert drawn[0] == {RATE: 6e-3, DECAY: 0.01}
    assert len(drawn) == 4 == len({tuple(values.values()) for values in drawn})
    assert all(values[RATE] == float(f"{values[RATE]:.3g}") for values in drawn)
    again = []
    while assignment := sweep(name="cut").next():
        again.append(assignment.values)
        finish(sweep(name="cut"), assignment)
    assert again == drawn


@pytest.mark.parametrize("scheme", ["", "sqlite:///"])
def test_two_processes_share_the_trials_and_a_dead_ones_is_taken_up(sweep, scheme):
    here, there = sweep(scheme=scheme), sweep(scheme=scheme)
    mine, theirs = here.next(), there.next()
    assert mine.number != theirs.number and mine.name != theirs.name
    theirs.lock.close()  # as the system does when its holder dies
    taken = here.next()
    assert (taken.number, taken.name, taken.values) == (theirs.number, theirs.name, theirs.values)
    finish(here, taken)
    finish(here, mine)
    numbers = []
    while assignment := there.next():
        numbers.append(assignment.number)
        finish(there, assignment)
    assert numbers == [2, 3]
    assert len(here.trials(TrialState.COMPLETE)) == 4


def test_another_machines_trial_is_left_alone_until_it_has_been_silent_for_long(sweep):
    here = sweep()
    theirs = here.next()
    storage = here.study._storage
    storage.set_trial_user_attr(theirs.trial, HOST, "elsewhere")
    theirs.lock.close()
    other = here.next()
    assert other.number != theirs.number
    finish(here, other)
    storage.set_trial_user_attr(theirs.trial, ALIVE, time.time() - 3600)
    again = here.next()
    assert again.values == theirs.values and again.name == theirs.name
    assert theirs.number not in [trial.number for trial in here.trials()]


def test_the_best_values_are_shown_and_written_where_asked(sweep):
    ours = sweep(plan_of(start=["current", {RATE: 2e-3, DECAY: 0.1}]))  # finish() likes a rate of 2e-3 best
    while assignment := ours.next():
        finish(ours, assignment)
    before = ours.params.read_text()
    told = propose(ours, write=False)
    assert re.search(r"^\+ +learning_rate: 0.002", told, re.M) and "--apply" in told
    assert ours.params.read_text() == before
    propose(ours, write=True)
    train = load_params(ours.params).train
    assert (train.learning_rate, train.weight_decay) == (2e-3, 0.1)
    assert "has the best values already" in propose(ours, write=True)


def test_a_space_without_more_values_ends_the_sweep(sweep):
    two = plan_of(space={DECAY: {"choices": [0.0, 0.01]}})
    values = []
    while assignment := sweep(two).next():
        values.append(assignment.values[DECAY])
        sweep(two).tell(assignment, Outcome("c" * 40, 50.0, 4, None))
        assignment.lock.close()
    assert sorted(values) == [0.0, 0.01]


def test_hours_of_training_are_a_budget_over_all_processes(sweep):
    plan = plan_of(hours=1.0)
    first, second = sweep(plan).next(), sweep(plan).next()
    for assignment in (first, second):
        sweep(plan).sign(assignment.trial, 2000)
        finish(sweep(plan), assignment)
    assert sweep(plan).next() is None


def test_what_another_sweep_pruned_is_another_experiment(sweep):
    first, second = (sweep(plan_of(pruner=pruner), name=str(pruner)).next() for pruner in (None, {"keep": 0.5}))
    assert first.values == second.values and first.name != second.name


def test_a_sweep_of_something_else_is_refused(sweep):
    sweep()
    with pytest.raises(UserError, match=r"begun with other values.*params \(of: there, was here\).*--study NAME"):
        sweep(origin="there")


def test_names_can_be_read_and_say_of_which_sweep():
    values = {RATE: 3e-4, DECAY: 0.01, "train.dropout": 0.05, "train.schedule": "cosine", "train.warmup_steps": 50}
    name = experiment_name(values, "a")
    assert re.fullmatch(r"sweep-lr3e-4-wd0\.01-dropout0\.05-schedulecosine-ws50-[0-9a-f]{4}", name)
    assert name != experiment_name(values, "b")


# Its file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"train.learnig_rate": SPACE[RATE]}}, "train.learnig_rate: no such key; did you mean learning_rate"),
        ({"space": {RATE: {"low": 0.1, "high": 2.0}}}, "space: train.learning_rate:.*less than or equal to 1, found 2"),
        ({"space": {RATE: {"low": 0.1}}}, "space.train.learning_rate: wants choices, or low and a greater high"),
        ({"space": {"featurize.n_mels": {"choices": [80, 128]}}}, "a sweep turns keys of whisper and train alone"),
        ({"space": {RATE: {"low": 1e-6, "high": 1e-5}}}, "start: train.learning_rate 0.006 is outside of its space"),
        ({"overrides": {"train.eval_every": 7}}, "overrides:.*eval_every must be a multiple of log_every"),
        ({"overrides": {DECAY: 0.0}}, "train.weight_decay: in space or in overrides, not in both"),
        ({"start": [{"train.dropout": 0.1}]}, "start: train.dropout: not in space"),
        ({"trials": 0}, "trials: Input should be greater than or equal to 1"),
    ],
)
def test_what_params_yaml_would_not_take_is_refused_before_anything_starts(tmp_path, settings, change, message):
    YAML().dump({"space": SPACE, "trials": 3} | change, tmp_path / "sweep.yaml")
    with pytest.raises(UserError, match="(?s)" + message):
        load_plan(tmp_path / "sweep.yaml", settings())


def test_shipped_sweeps_suit_their_recipes(settings):
    params = settings()
    assert load_plan(find_plan("default"), params).trials == 12
    apply_values(params, recipe_values(ROOT / "recipes", "swedish-small"))
    assert load_plan(find_plan("swedish-small"), params).trials

    with pytest.raises(UserError, match=r"no sweep is called defualt.*default, swedish-small"):
        find_plan("defualt")


# A training that is pruned


@pytest.fixture
def trial(tmp_path) -> TrialSettings:
    """A trial of a study whose only finished one had no errors from the beginning."""
    storage = str(tmp_path / "study.log")
    study = open_study(storage, "s", RULE)
    study.add_trial(create_trial(value=0.0, intermediate_values={2: 0.0, 4: 0.0}))
    return TrialSettings(storage, "s", study.ask()._trial_id, RULE, ())


def test_a_pruned_training_ends_early_and_a_plain_one_goes_on_from_it_to_the_same_bytes(
    tmp_path, tiny, shards_folder, trial, monkeypatch
):
    short = {"batch_size": 4, "warmup_steps": 1, "max_steps": 6, "log_every": 1, "eval_every": 2, "save_every": 3}
    values = {f"train.{key}": value for key, value in short.items()}
    params = load_params(write_params(tmp_path / "params.yaml", values))
    validation = shutil.copytree(shards_folder, tmp_path / "validation")

    def trained(name: str) -> dict:
        outs = [
            tmp_path / name / out for out in ("checkpoints", "runs", "tuned", "curves", "d.tsv", "m.json", "d.json")
        ]
        outs[0].mkdir(parents=True, exist_ok=True)
        paths = Paths(shards_folder, validation, tiny, *outs)
        return train(params.train, params.compute, params.checkpoints, paths)

    whole = trained("whole")
    assert "pruned" not in whole
    monkeypatch.setenv(VARIABLE, trial.to_json())
    for _ in range(2):  # a trial that is killed after it stays pruned
        assert trained("run")["pruned"] == 2
    assert json.loads((tmp_path / "run/m.json").read_text())["pruned"] == 2
    (folder,) = (tmp_path / "run/checkpoints").iterdir()
    assert [checkpoint.state.finished for checkpoint in newest_first(folder)] == [False]
    study = open_study(trial.storage, "s", RULE)
    assert list(study.get_trials()[1].intermediate_values) == [2]
    monkeypatch.delenv(VARIABLE)
    assert trained("run") == whole
    for name in ("tuned/model.safetensors", "curves/validation.tsv", "m.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# Under DVC


def test_what_train_reads_lies_here_or_in_a_bucket(tmp_path):
    write_params(tmp_path / "params.yaml", {})
    run(tmp_path, "git", "init", "-q")
    commit(tmp_path)
    with pytest.raises(UserError, match="data/features/train is missing: run `make features` first"):
        check_ready(tmp_path)
    places = {f"features.{split}": f"s3://lab/{split}" for split in ("train", "validation")}
    write_params(tmp_path / "params.yaml", places)
    check_ready(tmp_path)


def test_a_pruned_trial_is_an_experiment_without_another_models_scores_and_repro_trains_it_to_its_end(
    finished, trial, tmp_path
):
    stale = stale_results(finished)
    assert "metrics/evaluate/tuned.json" in stale
    settings = TrialSettings(trial.storage, trial.study, trial.trial, RULE, stale)
    with (tmp_path / "lock").open("w") as lock:
        values = {"train.max_steps": 6, RATE: 1e-3}
        outcome = run_experiment(finished, "pruned", values, settings, tmp_path / "log", lock.fileno())
    assert outcome.pruned == 2 and outcome.steps == 2
    assert outcome == find_outcome(finished, "pruned")
    files = run(finished, "git", "ls-tree", "-r", "--name-only", outcome.commit).split()
    assert not set(stale) & set(files) and "metrics/train.json" in files
    assert run(finished, "git", "status", "--porcelain") == ""
    clone = shutil.copytree(finished, tmp_path / "repo")
    run(clone, "git", "checkout", "-q", outcome.commit)
    assert "resuming run" in run(clone, "dvc", "repro", "train")
    assert json.loads((clone / "metrics/details/train.json").read_text())["steps"] == 6


def begin(folder: Path, file: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tools.sweep", str(file)]
    with (file.parent / "out").open("a") as out:
        return subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=out, stderr=out)


def trainer_of(sweep: subprocess.Popen) -> psutil.Process | None:
    """The training below a sweep, where it has saved a checkpoint."""
    with suppress(psutil.Error):
        for process in psutil.Process(sweep.pid).children(recursive=True):
            stores = Path(process.cwd()).glob("../../../../../models/checkpoints/*/step-*")
            holders = {(path.parent / "lock").read_text() for path in stores}
            if str(process.pid) in holders:
                return process
    return None


def suspended_trainers(*sweeps: subprocess.Popen) -> list[psutil.Process]:
    """Of each sweep the training, suspended as soon as it has saved a checkpoint, so that none ends meanwhile."""
    end = time.monotonic() + 3 * PATIENCE
    found: dict[int, psutil.Process] = {}
    while len(found) < len(sweeps):
        assert time.monotonic() < end
        for sweep in sweeps:
            if sweep.pid not in found and (trainer := trainer_of(sweep)):
                trainer.suspend()
                found[sweep.pid] = trainer
            with suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"the sweep ended with {sweep.wait(0.05)}")  # else leaves it the processor
    return [found[sweep.pid] for sweep in sweeps]


def test_two_processes_stopped_in_the_middle_lose_no_trial_and_run_none_twice(finished, tmp_path):
    file = tmp_path / "both.yaml"
    overrides = {"train.max_steps": 60, "train.eval_every": 30, "train.save_every": 5}
    YAML().dump({"space": SPACE, "overrides": overrides, "pruner": None, "trials": 2}, file)
    killed, stopped = begin(finished, file), begin(finished, file)
    _, trainer = suspended_trainers(killed, stopped)
    for process in [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]:
        process.kill()
    stopped.send_signal(signal.SIGINT)
    trainer.resume()
    assert stopped.wait(PATIENCE) == 130
    assert begin(finished, file).wait(5 * PATIENCE) == 0
    said = (tmp_path / "out").read_text()
    assert said.count("stopped by Ctrl-C") == 1 and "Traceback" not in said
    rows = [line.split(",") for line in run(finished, "dvc", "exp", "show", "--csv").splitlines()]
    names = [row[0] for row in rows if row[0].startswith("sweep-")]
    assert len(names) == 2 == len(set(names))
    assert not [row for row in rows if "Running" in row]
    logs = [path.read_text() for path in (finished / ".dvc/tmp/sweeps/both").glob("sweep-*.log")]
    assert [log.count("resuming run") for log in logs] == [1, 1]
    assert re.search(r"(train|validate) \d+/60 [^\r\n]*, sweep-", said)  # how far a trial is
    assert "points of WER worse" in said and "--confirm 3" in said
    page = (finished / ".dvc/tmp/sweeps/both.html").read_text()
    assert "Plotly.newPlot" in page and not re.search(r"<(script|link|img)[^>]{0,200}(src|href)=", page)
    assert run(finished, "git", "status", "--porcelain") == ""
    assert len(re.findall(r"^ +\d+\.\d\d +60  sweep-", said, re.M)) == 2  # its table

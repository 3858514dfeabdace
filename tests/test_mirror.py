"""Checkpoints on a DVC remote: another machine goes on from them, and a remote that fails costs nothing."""

import json
import signal
from pathlib import Path

import pytest

from stages.training import mirror
from stages.training.mirror import RemoteCheckpoints
from tests.support.clones import Clone
from tests.support.material import write_params
from tests.support.repository import with_store
from tests.support.training import SETTINGS, Training, make_place, newest, results, start, wait_for

LONG = SETTINGS | {"train.max_steps": 240, "train.eval_every": 120, "train.save_every": 20}
LONG |= {"train.gradient_accumulation": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, shards_folder) -> Path:
    """What training reads, and the results of a run that nobody stopped and nothing copied."""
    return make_place(tmp_path_factory.mktemp("mirrored"), tiny, shards_folder, LONG)


@pytest.fixture
def repository(tmp_path) -> Path:
    """A DVC repository whose remote ``store`` is a folder beside it."""
    return with_store(tmp_path / "repository")


@pytest.fixture
def run(place, repository, tmp_path):
    """Call with a name: begins a mirrored run with outs and a store of its own, as another clone would."""
    params = write_params(tmp_path / "params.yaml", LONG | {"checkpoints.mirror": "store"})
    unique = f"{tmp_path.name}-"
    return lambda name, **env: start(place, unique + name, params, DVC_ROOT=str(repository), **env), unique


def arrived(repository: Path) -> list[Path]:
    return sorted((repository.parent / "store").glob("checkpoints/*/step-*.zip"))


@pytest.fixture
def killed(place, run, repository):
    """A run "a" that was killed once a copy had arrived; gives begin and the log of a name."""
    begin, unique = run
    process = begin("a")
    wait_for(process, lambda: newest(place / f"{unique}a") >= 40)
    process.send_signal(signal.SIGSTOP)  # so that it cannot end before its copy has arrived
    wait_for(process, lambda: arrived(repository))
    process.kill()
    process.wait()
    assert arrived(repository), "the run ended before its copy arrived"
    return begin, unique


def log(place: Path, unique: str, name: str) -> str:
    return (place / f"{unique}{name}" / "log").read_text()


def test_another_clone_goes_on_and_ends_in_the_same_bytes(place, killed, repository):
    begin, unique = killed
    step = int(arrived(repository)[-1].name[5:13])
    assert begin("b").wait() == 0
    assert f"at step {step} of 240" in log(place, unique, "b")
    assert results(place, f"{unique}b") == results(place, "whole")
    assert not list((repository.parent / "store").rglob("*.zip"))  # the run is finished
    assert not (repository.parent / "store/files").exists()  # nothing among DVC's own objects


def test_a_damaged_copy_is_not_used(place, killed, repository):
    begin, unique = killed
    for path in arrived(repository):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    assert begin("b").wait() == 0
    assert "is not what was sent" in log(place, unique, "b")
    assert results(place, f"{unique}b") == results(place, "whole")


def test_a_run_of_another_machine_is_neither_taken_nor_passed_over_in_silence(place, killed, repository):
    begin, unique = killed
    (parts,) = (repository.parent / "store").rglob("parts.json")
    other = json.loads(parts.read_text())
    other["machine"]["processor"] = "another"
    parts.chmod(0o644)
    parts.write_text(json.dumps(other))
    folder = parts.parent.rename(parts.parent.with_name("0123456789abcdef"))
    assert begin("b").wait() == 1
    said = log(place, unique, "b")
    assert "run 012345" in said and "was another" in said and "VISKA_ADOPT" in said and "VISKA_FRESH" in said
    assert begin("b", VISKA_ADOPT="012345").wait() == 0
    details = json.loads((place / f"{unique}b/details.json").read_text())
    assert details["adopted"] == {"run": "012345", "differs": ["machine"]}
    assert folder.exists()  # another run's copies are its own


def test_a_remote_that_is_down_gives_one_warning_and_the_same_bytes(place, run, repository):
    begin, unique = run
    store = repository.parent / "store"
    store.write_text("a file where the remote's folder should be")
    process = begin("a")
    wait_for(process, lambda: (place / f"{unique}a/details.json").exists())  # which is written last
    store.unlink()  # else the end would be waited for in vain, as the next test does in no time
    assert process.wait() == 0
    assert log(place, unique, "a").count("warning: remote") == 1
    assert "training goes on without it" in log(place, unique, "a")
    assert results(place, f"{unique}a") == results(place, "whole")


@pytest.mark.parametrize("warned", [False, True])
def test_an_uploader_that_reaches_nothing_gives_up_with_one_warning_in_a_run(
    repository, tmp_path, monkeypatch, capsys, warned
):
    (repository.parent / "store").write_text("a file where the remote's folder should be")
    monkeypatch.setattr(mirror, "PAUSE", 0)
    outbox = tmp_path / "run" / mirror.OUTBOX
    (outbox / "step-00000020").mkdir(parents=True)
    uploader = mirror.Uploader(repository, "store", tmp_path / "run", 1, warned)
    uploader.start()
    uploader.tell("step-00000020")
    while list(outbox.iterdir()):
        uploader.join(0.001)
    uploader.tell(mirror.FINISHED)
    uploader.join()
    assert capsys.readouterr().err.count("warning:") == (not warned)


def test_copies_are_listed_newest_first_and_superseded_ones_go(killed, repository, tmp_path):
    remote = RemoteCheckpoints(repository, "store", tmp_path)
    (run,) = remote.runs()
    (copy,) = remote.copies(run)  # checkpoints.keep.remote
    assert copy.step % 20 == 0 and copy.size == arrived(repository)[0].stat().st_size
    remote.remove(run)
    assert remote.copies(run) == []


# The same on Drive


@pytest.fixture
def begin_on_drive(drive, place, tmp_path):
    """Call with a name: begins a run that is mirrored to Drive, in a clone of its own, whose removals go to the trash.

    A name's second call begins the same run again.
    """
    params = write_params(tmp_path / "params.yaml", LONG | {"checkpoints.mirror": "drive"})

    def begin(name: str) -> Training:
        clone = Clone(drive, tmp_path / name)
        if not clone.folder.exists():
            clone.folder.mkdir()
            for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
                clone.run(*command)
            clone.connect()
        return start(place, f"{tmp_path.name}-{name}", params, DVC_ROOT=str(clone.folder), **clone.env)

    return begin


def copies_on(drive, trashed: bool = False) -> list[str]:
    return [item.title for item in drive.files(trashed) if item.title.startswith("step-")]


def test_on_drive_another_clone_goes_on_and_nothing_stays_behind(drive, begin_on_drive, place, tmp_path):
    process, run = begin_on_drive("a"), place / f"{tmp_path.name}-a"
    for condition in (lambda: copies_on(drive), lambda: drive.counts()["delete"]):  # a copy, and one superseded
        step = newest(run)
        wait_for(process, lambda least=step + 40: newest(run) >= least)
        process.send_signal(signal.SIGSTOP)  # so that it cannot end before its copy has arrived
        wait_for(process, condition)
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    assert copies_on(drive), "the run ended before its copy arrived"
    assert begin_on_drive("b").wait() == 0
    assert "resuming run" in log(place, f"{tmp_path.name}-", "b")
    assert results(place, f"{tmp_path.name}-b") == results(place, "whole")
    assert copies_on(drive) == copies_on(drive, trashed=True) == []
    assert not [item for item in drive.items.values() if item.title == "files"]  # nothing among DVC's own objects


@pytest.mark.parametrize("fault", ["quota reached", "silence"])
def test_a_drive_that_takes_no_copy_costs_training_nothing(drive, begin_on_drive, place, tmp_path, fault):
    drive.script = lambda operation: fault if operation == "start" else None
    assert begin_on_drive("a").wait() == 0
    said = log(place, f"{tmp_path.name}-", "a")
    assert results(place, f"{tmp_path.name}-a") == results(place, "whole")
    assert copies_on(drive) == copies_on(drive, trashed=True) == []
    assert "Traceback" not in said
    assert said.count("warning: remote") == (fault == "quota reached")  # the other gave up in time

"""``python -m tools.checkpoints``: what is there, and making room."""

from pathlib import Path

import pytest

from stages.runtime.errors import UserError
from stages.training.checkpoints import CheckpointManager, LocalCheckpoints, locked, save
from tests.support.process import call
from tools.checkpoints import main


@pytest.fixture
def store(tmp_path) -> Path:
    """Two runs: one with checkpoints of steps 100 and 200, one with none."""
    for step in (100, 200):
        save(tmp_path / ("a" * 16), step, lambda folder: (folder / "weights").write_bytes(bytes(1_000_000)))
    (tmp_path / ("b" * 16)).mkdir()
    return tmp_path


def tool(*arguments: object, status: int = 0) -> str:
    result = call(main, *arguments)
    assert result.returncode == status, result.stderr
    return result.stdout + result.stderr


def test_list_shows_steps_and_sizes(store):
    lines = [line.split() for line in tool("list", "--store", store).splitlines()]
    assert lines[0] == ["place", "run", "steps", "size", "age"]
    row = next(line for line in lines if line[1] == "aaaaaa")
    assert row[:6] == ["here", "aaaaaa", "200,", "100", "2.0", "MB"]


def test_prune_frees_what_is_named_and_spares_what_is_in_use(store):
    with locked(store / ("b" * 16)):
        said = tool("prune", "--store", store)
    assert "run bbbbbb is being trained; left alone" in said
    assert "run aaaaaa here: 2.0 MB freed" in said
    assert [path.name for path in store.iterdir()] == ["b" * 16]


def test_an_unknown_run_is_an_error_and_frees_nothing(store):
    assert "no run 999" in tool("prune", "--store", store, "999", status=1)
    assert len(list(store.glob("*/step-*"))) == 2


def test_a_checkpoint_builds_on_none_that_training_has_not_come_by(store):
    """A damaged one that was passed over still lies there when its step is saved again."""
    manager = CheckpointManager(store / ("a" * 16), keep=3)
    assert [before and before.step for before in map(manager.before, (100, 101, 200, 300))] == [None, 100, 100, 200]


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    save(tmp_path / "run", 1, lambda folder: (folder / "weights").write_bytes(b"whole"))

    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        with Path("/dev/full").open("wb") as full:
            full.write(bytes(100_000))

    with pytest.raises(UserError, match=r"no space is left .* step 2 .* tools\.checkpoints prune"):
        save(tmp_path / "run", 2, fill)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-00000001"]
    assert LocalCheckpoints(tmp_path).fetch("run", 1).step == 1

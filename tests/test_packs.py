"""Results that are kept for later runs: found again or not at all, whatever became of the files."""

import os
from pathlib import Path

import pytest

from stages.runtime.packs import Packs, read_indexes

RESULTS = {bytes([number]) * 16: b"result %d" % number * number for number in range(4)}


def packs(folder: Path, max_bytes: int = 10**6) -> Packs:
    """The packs as another run sees them."""
    return Packs(folder / "key", max_bytes)


def found(folder: Path) -> dict[bytes, bytes | None]:
    run = packs(folder)
    return {digest: run.find(digest) for digest in RESULTS}


def test_what_is_kept_is_found_by_later_runs_and_nothing_else(tmp_path):
    packs(tmp_path).keep(RESULTS.items())
    assert found(tmp_path) == RESULTS
    assert packs(tmp_path).find(b"\1" * 15 + b"\0") is None  # begins as one that is kept
    assert Packs(tmp_path / "other", 10**6).find(b"\1" * 16) is None


def test_runs_that_keep_the_same_at_once_do_no_harm(tmp_path):
    for _ in range(2):
        packs(tmp_path).keep(RESULTS.items())
    assert len(list(tmp_path.rglob("*.pack"))) == 2
    assert found(tmp_path) == RESULTS


@pytest.mark.parametrize("change", ["cut", "flip"])
def test_a_damaged_pack_gives_what_was_kept_or_nothing(tmp_path, change):
    packs(tmp_path).keep(RESULTS.items())
    (path,) = tmp_path.rglob("*.pack")
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] if change == "cut" else data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        right = [result == RESULTS[digest] for digest, result in found(tmp_path).items() if result is not None]
        assert all(right) and len(right) < len(RESULTS)


def test_packs_that_vanish_during_a_run_are_as_if_they_had_never_been(tmp_path):
    run = packs(tmp_path)
    run.keep(RESULTS.items())
    assert run.find(b"\1" * 16)
    next(tmp_path.rglob("*.pack")).unlink()
    assert run.find(b"\1" * 16) is None
    run.folder.rmdir()
    run.keep(RESULTS.items())
    assert found(tmp_path) == RESULTS


def test_what_was_used_longest_ago_goes_where_there_is_too_much(tmp_path):
    old, unused = Packs(tmp_path / "older", 10**6), packs(tmp_path)
    for age, run in ((3, old), (2, unused)):
        run.keep([(bytes([age]) * 16, bytes(100))])
        os.utime(next(run.folder.iterdir()), (age, age))
    (old.folder / "begun.pack.part").write_bytes(bytes(100))
    os.utime(old.folder / "begun.pack.part", (1, 1))
    (tmp_path / "mine.txt").write_bytes(bytes(10_000))
    assert old.find(b"\3" * 16)  # is used now
    Packs(tmp_path / "newest", 400).keep([(b"\4" * 16, bytes(100))])
    assert sorted(path.parent.name for path in tmp_path.glob("*/*")) == ["newest", "older"]
    assert Packs(tmp_path / "older", 400).find(b"\3" * 16)
    assert (tmp_path / "mine.txt").exists()


def test_an_index_holds_at_most_40_bytes_a_result(tmp_path):
    run = packs(tmp_path)
    run.keep((number.to_bytes(16, "big")[::-1], b"x") for number in range(1000))
    index = read_indexes(run)
    assert sum(part.nbytes for part in (index.keys, index.rows, index.packs)) <= 40_000

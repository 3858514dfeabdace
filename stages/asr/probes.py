"""Probes: further test sets beside a corpus's own, each a folder below one with the table of all."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from stages.runtime.errors import UserError
from stages.runtime.files import write_table

TABLE = "probes.tsv"


@dataclass(frozen=True)
class Probe:
    """name: of its folder. language: Whisper's code of what is spoken; empty where it is the model's own."""

    name: str
    language: str


def write_probes(folder: Path, probes: Sequence[Probe]) -> None:
    """Write the table, sorted by name, also of none."""
    rows = [(probe.name, probe.language) for probe in sorted(probes, key=lambda probe: probe.name)]
    write_table(folder / TABLE, [field.name for field in fields(Probe)], rows)


def holds_probes(folder: Path) -> bool:
    """Whether a folder is one of probes, and not of clips."""
    return (folder / TABLE).is_file()


def read_probes(folder: Path) -> list[Probe]:
    """The probes of a folder, sorted by name; raises UserError where it has no table of them."""
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as lines:
            return [Probe(**row) for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]
    except FileNotFoundError:
        raise UserError(f"{folder / TABLE} is missing: run the stage that writes it, or `dvc pull`") from None

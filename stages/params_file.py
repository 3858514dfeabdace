"""The editor of params.yaml: values change; comments, quotes, the spelling of numbers and long lines stay."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from stages.params import Download, Params, read_yaml, validate_params
from stages.runtime.errors import UserError
from stages.runtime.files import write_text

FOLDER_DIGEST = "download.folder.digest"  # the key that a tool writes, not a person
SOURCE_DIGEST = "download.{}.set.digest"  # the same of a source
Changes = dict[str, tuple[object, object]]  # values before and after by dotted key


def recordings_read(download: Download) -> dict[str, str]:
    """The folders of recordings that are read, each by the key at which its digest stands."""
    found = {
        SOURCE_DIGEST.format(place): download.alone(source).folder.path
        for place, source in download.sources().items()
        if source.corpus == "folder"
    }
    alone = download.corpus == "folder" and not download.corpora
    return ({FOLDER_DIGEST: download.folder.path} if alone else {}) | found


class ParamsFile:
    """params.yaml, open to be changed and then saved whole or not at all.

    Raises UserError where the file is missing or no YAML with sections.
    """

    def __init__(self, path: Path):
        self.path, self.document = path, read_document(path)
        self.original = dict(flatten(read_document(path)))

    def get(self, key: str) -> object:
        """The value at a dotted key; None where there is none."""
        value: object = self.document
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def names(self, key: str) -> list[str]:
        """The names that stand in the mapping at a dotted key; none where there is no mapping."""
        found = self.get(key)
        return [str(name) for name in found] if isinstance(found, Mapping) else []

    def set(self, key: str, value: object, dated: str | None = None) -> None:
        """Set the value at a dotted key; whether both are allowed is for ``validate`` and ``save`` to say.

        dated: of a commit, its date, which its comment then ends with; another value takes that back.
        """
        if dated or self.get(key) != value:
            date_comment(self.document, key, dated)
        set_value(self.document, key, value)

    def validate(self) -> Params:
        """The values as they are now; raises UserError as ``load_params`` does."""
        return validate_params(YAML(typ="safe", pure=True).load(yaml_text(self.document)), self.path)

    def save(self) -> Changes:
        """Write the file where a value changed; returns what did. Raises UserError, and writes nothing, if invalid."""
        self.validate()
        now, missing = dict(flatten(self.document)), object()
        changes = {
            key: (self.original.get(key), value)
            for key, value in now.items()
            if self.original.get(key, missing) != value
        }
        if changes:
            align_comments(self.document, changes)
            write_text(self.path, yaml_text(self.document))
            self.original = dict(flatten(read_document(self.path)))
        return changes


def read_document(path: Path) -> CommentedMap:
    """A YAML file's sections with their comments; raises UserError where it has none."""
    document = read_yaml(path, round_trip_yaml())
    if not isinstance(document, CommentedMap):
        raise UserError(f"{path} has no sections")
    return document


def flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every value that is not a mapping, or an empty one."""
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping) and value:
            yield from flatten(value, key)
        else:
            yield key, value


def set_value(document: CommentedMap, key: str, value: object) -> None:
    """Set the value at a dotted key, its comment kept; a section that is missing is made."""
    *parents, last = key.split(".")
    section = document
    for parent in parents:
        if not isinstance(section.get(parent), dict):
            section[parent] = CommentedMap()
        section = section[parent]
    if not section:
        section.fa.set_block_style()  # {} has none
    if last in section and section[last] == value:
        return  # as it was written: 1.5e-3, not 0.0015
    if isinstance(section.get(last), CommentedSeq) and isinstance(value, list):
        section[last][:] = value  # in place: the comment hangs on the list
        section[last].fa.set_flow_style()  # which one that was empty has lost
    else:
        section[last] = value


def date_comment(document: CommentedMap, key: str, date: str | None) -> None:
    """Have the comment behind a value end with a date, or with none."""
    *parents, last = key.split(".")
    section = document
    for parent in parents:
        section = section.get(parent)
        if not isinstance(section, CommentedMap):
            return
    ending = f"; commit of {date}" if date else ""
    if comment := section.ca.items.get(last, [None] * 3)[2]:
        line, newline, rest = comment.value.partition("\n")
        comment.value = re.sub(r"; commit of [\d-]+$", "", line) + ending + newline + rest
    elif date:
        section.yaml_add_eol_comment(f"commit of {date}", last)


def align_comments(document: CommentedMap, keys: Iterable[str]) -> None:
    """Put comments behind changed values into the column where most stand; ruamel moves those that do not fit."""
    columns = Counter(len(match[0]) for match in re.finditer(r"(?m)^ *[^\s#].*? +(?=# )", yaml_text(document)))
    for key in keys:
        *parents, last = key.split(".")
        section = document
        for parent in parents:
            section = section[parent]
        if comment := section.ca.items.get(last, [None] * 3)[2]:
            comment.column = columns.most_common(1)[0][0]


def yaml_text(values: object) -> str:
    """Values as YAML, with the comments, quotes and spellings of those that were read from a file."""
    buffer = io.StringIO()
    round_trip_yaml().dump(values, buffer)
    return buffer.getvalue()


def round_trip_yaml() -> YAML:
    """A reader and writer that keeps comments, quotes and line lengths."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width, yaml.Representer = True, 10_000, Representer
    return yaml


class Representer(RoundTripRepresenter):
    """Writes null where ruamel writes nothing."""

    def represent_null(self, _: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


Representer.add_representer(type(None), Representer.represent_null)

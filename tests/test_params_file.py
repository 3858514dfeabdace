"""The editor of params.yaml: a value changes, and nothing else of the text does."""

import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.params import load_params
from stages.params_file import ParamsFile, flatten, read_document, set_value, yaml_text
from stages.runtime.errors import UserError
from tests.support.material import ROOT

LONG = "a long name " * 30
TEXT = f"""\
# above all

train: # a section
  rate: 1.5e-3      # a rate
  small: 1e-05      # another
  share: 0.10       # of ten
  many: 1_000       # of something
  none: null
  single: 'quoted'  # in one way
  double: "quoted"  # in the other
  figures: '0123'
  # between two
  names: [a, b]     # a list
  long: {LONG.strip()}
  empty: {{}}

other: {{x: 1, y: two}} # on one line
# at the end
"""


@pytest.fixture
def params(tmp_path) -> Path:
    return Path(shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml"))


@pytest.fixture
def text_file(tmp_path) -> Path:
    (tmp_path / "text.yaml").write_text(TEXT)
    return tmp_path / "text.yaml"


def changed_lines(before: str, after: str) -> list[tuple[str, str]]:
    return [pair for pair in zip(before.splitlines(), after.splitlines(), strict=True) if pair[0] != pair[1]]


def test_what_is_read_is_written_the_same(params, text_file):
    for path in (params, text_file):
        assert yaml_text(read_document(path)) == path.read_text()


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("train.rate", 2e-3, "  rate: 0.002       # a rate"),
        ("train.share", 0.2, "  share: 0.2        # of ten"),
        ("train.none", 3, "  none: 3"),
        ("train.many", None, "  many: null        # of something"),
        ("train.figures", "45678901", "  figures: '45678901'"),  # which would be a number without quotes
        ("train.single", "other", "  single: 'other'   # in one way"),
        ("train.double", "other", '  double: "other"   # in the other'),
        ("train.names", ["c", "d", "e"], "  names: [c, d, e]  # a list"),
        ("train.names", [], "  names: []         # a list"),
        ("other.x", 2, "other: {x: 2, y: two} # on one line"),
    ],
)
def test_one_value_changes_and_every_other_line_stays(text_file, key, value, line):
    document = read_document(text_file)
    set_value(document, key, value)
    ((_, after),) = changed_lines(TEXT, yaml_text(document))
    assert re.sub(" +#", " #", after) == re.sub(" +#", " #", line)
    assert dict(flatten(YAML(typ="safe", pure=True).load(yaml_text(document))))[key] == value


@pytest.mark.parametrize(("key", "value"), [("train.rate", 0.0015), ("train.small", 0.00001), ("train.share", 0.1)])
def test_the_same_value_stays_as_it_was_spelled(text_file, key, value):
    document = read_document(text_file)
    set_value(document, key, value)
    assert yaml_text(document) == TEXT


def test_an_emptied_list_takes_values_again(text_file):
    document = read_document(text_file)
    for value in ([], ["a", "b"]):
        set_value(document, "train.names", value)
    assert yaml_text(document) == TEXT


def test_saving_returns_what_changed_and_keeps_comments_in_their_column(params):
    before, file = params.read_text(), ParamsFile(params)
    file.set("train.learning_rate", 2e-5)
    file.set("train.batch_size", 128)
    file.set("train.seed", 1)  # as it is
    assert file.save() == {"train.batch_size": (16, 128), "train.learning_rate": (6e-3, 2e-5)}
    changed = changed_lines(before, params.read_text())
    assert [one.index("#") for one, _ in changed if "#" in one] == [two.index("#") for _, two in changed if "#" in two]
    assert len(changed) == 2
    assert load_params(params).train.learning_rate == 2e-5
    assert file.save() == {}


def test_a_list_is_told_as_it_was(params):
    file = ParamsFile(params)
    file.set("download.common_voice.train.tables", ["train", "other"])
    assert file.save() == {"download.common_voice.train.tables": (["train"], ["train", "other"])}


def test_where_nothing_changes_the_file_is_not_written(params):
    before = params.stat().st_mtime_ns
    file = ParamsFile(params)
    file.set("train.learning_rate", 0.006)
    assert file.save() == {}
    assert params.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("train.learning_rate", -1, "train.learning_rate: Input should be greater than 0, found -1"),
        ("train.learning_rat", 1, "train.learning_rat: no such key; did you mean learning_rate?"),
        ("train.seed.deeper", 1, "train.seed: Input should be a valid integer"),
        ("train", 5, "train: Input should be a valid dictionary"),
        ("train.epochs", 2, "train: exactly one of max_steps and epochs must be null"),
    ],
)
def test_what_is_not_valid_is_refused_and_the_file_stays(params, key, value, complaint):
    before = params.read_bytes()
    file = ParamsFile(params)
    file.set("train.batch_size", 8)
    file.set(key, value)
    with pytest.raises(UserError, match=re.escape(complaint)):
        file.save()
    assert params.read_bytes() == before
    assert list(params.parent.iterdir()) == [params]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "is missing: run from the project's root"),
        ("train: [", "is not valid YAML"),
        ("", "has no sections"),
        ("[1]", "has no sections"),
    ],
)
def test_what_is_no_params_file_is_refused(params, content, complaint):
    params.unlink() if content is None else params.write_text(content)
    with pytest.raises(UserError, match=complaint):
        ParamsFile(params)

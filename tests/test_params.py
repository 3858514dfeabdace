import ast
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from stages.params import Params, load_params
from stages.runtime.errors import UserError
from tests.support.material import ROOT


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as refusal:
        load_params(path)
    first, *others = str(refusal.value).splitlines()
    assert first == f"{path}:"
    return "\n".join(others)


def test_the_shipped_file_is_valid():
    assert load_params(ROOT / "params.yaml").whisper.language == "sv"


def test_sections_cannot_be_changed():
    train = load_params(ROOT / "params.yaml").train
    with pytest.raises(ValidationError, match="frozen"):
        train.learning_rate = 1.0


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("train.learning_rat", "did you mean learning_rate? (allowed: seed, context, "),
        ("whisper.scratch.layer", "did you mean layers? (allowed: d_model, layers, heads, "),
        ("wisper", "did you mean whisper? (allowed: whisper, download, featurize, "),
        ("evaluate.colour", "no such key (allowed: bootstrap_samples, full_window_clips, conditions, seed)"),
    ],
)
def test_a_misspelt_key_is_named_with_what_was_meant(settings, key, allowed):
    line = complaint(settings({key: 1}))
    assert line.startswith(f"  {key}: no such key")
    assert allowed in line


@pytest.mark.parametrize("key", ["train", "train.learning_rate", "whisper.scratch.merges", "compute.processes"])
def test_a_missing_key_is_named(settings, key):
    assert complaint(settings({key: ...})) == f"  {key}: is missing"


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("train.learning_rate", 0, "greater than 0"),
        ("train.learning_rate", "fast", "a valid number"),
        ("train.precision", "fp8", "'auto', 'fp32', 'bf16' or 'fp16'"),
        ("train.optimizer", "sgd", "'adamw', 'adamw_8bit' or 'muon'"),
        ("train.batch_seconds", 0, "greater than 0"),
        ("train.freeze", "decoder", "must be null, encoder, or a number of the encoder's lower layers"),
        ("train.freeze", True, "must be null, encoder, or a number"),
        ("train.freeze", 0, "must be null, encoder, or a number"),
        ("train.lora.rank", -1, "greater than or equal to 0"),
        ("train.batch_size", 2.5, "a valid integer"),
        ("train.batch_size", 0, "greater than or equal to 1"),
        ("train.gradient_checkpointing", True, "'none', 'full_windows' or 'all'"),
        ("train.max_label_tokens", 449, "less than or equal to 448"),
        ("train.full_context_share", 1.1, "less than or equal to 1"),
        ("train.spec_augment.time_prob", 1.0, "less than 1"),
        ("train.weight_decay", float("inf"), "finite"),
        ("featurize.n_mels", 81, "80 or 128"),
        ("featurize.dtype", "float32", "'uint8' or 'float16'"),
        ("featurize.max_seconds", 31, "less than or equal to 30"),
        ("whisper.base", "small", r"scratch|"),
        ("whisper.language", "Swedish", "pattern"),
        ("whisper.scratch.seconds", None, "a valid integer"),
        ("compute.processes", 0, "greater than or equal to 1"),
        ("compute.backend", "slurm", "'processes', 'dask' or 'ray'"),
        ("compute.gpus", 0, "must be auto, or a number from 1 on"),
        ("compute.gpus", "all", "must be auto"),
        ("train.spec_augment", 5, "a valid dictionary"),
        ("download.common_voice.release", "latest", "pattern"),
        ("evaluate.full_window_clips", -1, "greater than or equal to 0"),
        ("evaluate.conditions.speed", 0.9, "a valid list"),
    ],
)
def test_an_impossible_value_is_named_with_what_is_allowed(settings, key, value, allowed):
    line = complaint(settings({key: value}))
    assert line.startswith(f"  {key}: ")
    assert allowed in line
    assert line.endswith(f", found {value!r}")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"train.epochs": 3}, "  train: exactly one of max_steps and epochs must be null"),
        ({"train.max_steps": None}, "  train: exactly one of max_steps and epochs must be null"),
        (
            {"train.freeze": "encoder"},
            "  train: ctc_weight teaches the encoder, which freeze keeps as it is: set it to 0",
        ),
        ({"compute.address": "tcp://10.0.0.1:8786"}, "  compute: address is a cluster's: set backend to dask or ray"),
        ({"train.log_every": 20, "train.eval_every": 50}, "  train: eval_every must be a multiple of log_every (20)"),
        ({"train.log_every": 20, "train.eval_every": 40, "train.save_every": 50}, "  train: save_every must be a mul"),
        ({"whisper.scratch.heads": 3}, "  whisper.scratch: d_model (128) must be a multiple of heads (3)"),
        (
            {"download.common_voice.release": "25.0"},
            "  download.common_voice: exactly one of archive and release must be null",
        ),
        (
            {
                "download.common_voice." + key: value
                for key, value in (("archive", None), ("locale", None), ("release", 25.0))
            },
            "  download.common_voice: a release wants its locale, such as sv-SE",
        ),
        (
            {"download.hub.test": {"splits": [], "limit": None, "share": None}},
            "  download.hub.test: either splits is [] or share is null",
        ),
        (
            {"download.corpora": {"a": {"corpus": "hub"}}},
            "  download: corpora.a.set.revision must be the data set's commi",
        ),
        (
            {"download.corpora": {"a": {"corpus": "folder", "set": {"pth": "x"}}}},
            "  download: corpora.a.set: pth: no such key; did you mean path? (allowed: path, digest,",
        ),
        (
            {"download.probes": {"a": {"corpus": "folder", "set": {"seed": -1}}}},
            "  download: probes.a.set: seed: Input should be greater than or equal to 0, found -1",
        ),
        ({"download.probes": {"a": {"corpus": "folder", "limt": 3}}}, "  download.probes.a.limt: no such key; did you"),
        (
            {f"download.{kind}": {"a": {"corpus": "synthetic"}} for kind in ("corpora", "probes")},
            "  download: corpora and probes are both called a",
        ),
        ({"whisper.revision": "abcdef12"}, "  whisper: revision must be null for scratch"),
        ({"whisper.base": "openai/whisper-small"}, "  whisper: revision must be null for scratch; a Hub id wants its"),
    ],
)
def test_values_that_do_not_go_together_are_named(settings, values, line):
    assert complaint(settings(values)).startswith(line)


@pytest.mark.parametrize(
    ("written", "release"), [("25.0", "25.0"), (25.0, "25.0"), (16.1, "16.1"), ("cmn2e8gr3", "cmn2e8gr3")]
)
def test_a_release_may_be_written_without_quotes(settings, written, release):
    values = {"download.common_voice.archive": None, "download.common_voice.release": written}
    assert load_params(settings(values)).download.common_voice.release == release


def test_everything_that_is_wrong_is_told_at_once(settings):
    lines = complaint(settings({"train.seed": -1, "train.batch": 8, "featurize.dtype": ...})).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["featurize.dtype", "train.seed", "train.batch"]


@pytest.mark.parametrize("written", ["1e-5", "1.0e-5", "0.00001", "1E-5"])
def test_a_power_of_ten_is_a_number_however_it_is_written(tmp_path, written):
    shipped = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(shipped.replace("learning_rate: 6e-3", f"learning_rate: {written}"))
    train = load_params(tmp_path / "params.yaml").train
    assert train.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"whisper: 1\nwhisper: 2\n", r'duplicate key "whisper"'),
        (b"a: b: c\n", "line 1"),
        (b"a: !!python/object:os.system x\n", "python/object:os.system"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"seed: " + b"1" * 5000, "not valid YAML: .* 5000 digits"),
        (b"a: " + b"[" * 3000, "not valid YAML: .* recursion"),
        (b"", "the file: Input should be a valid dictionary"),
    ],
)
def test_what_is_no_params_file_is_refused(tmp_path, content, complaint):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as refusal:
        load_params(path)
    assert str(path) in str(refusal.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'params.yaml'} is missing: run from the project's root"):
        load_params(tmp_path / "params.yaml")


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    below = [field.annotation for field in model.model_fields.values()]
    return [model] + [
        inner for one in below if isinstance(one, type) and issubclass(one, BaseModel) for inner in sections(one)
    ]


def test_no_value_stands_in_the_code():
    for section in sections(Params):
        for name, field in section.model_fields.items():
            assert field.is_required(), f"{section.__name__}.{name} has a default"


def test_every_stage_reads_the_whole_file():
    """Each command takes --params and hands it to load_params, which validates all of it."""
    modules = [path for path in (ROOT / "stages").glob("*.py") if "@click.command" in path.read_text()]
    assert len(modules) >= 5
    for path in modules:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert [call for call in calls if ast.unparse(call.func) == "load_params"], path

"""params.yaml as frozen sections: what may stand there, and how a wrong value is reported."""

import difflib
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from stages.runtime.errors import UserError

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
LanguageCode = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Scratch(Section):
    d_model: Annotated[int, Field(ge=2, multiple_of=2)]
    layers: Count
    heads: Count
    seconds: Annotated[int, Field(ge=1, le=30)]
    merges: Annotated[int, Field(ge=0)]
    init_std: Annotated[float, Field(gt=0, le=1)]
    seed: Seed

    @model_validator(mode="after")
    def heads_divide_width(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of heads ({self.heads})")
        return self


class Whisper(Section):
    base: Annotated[str, Field(pattern=r"^(scratch|[\w.-]+/[\w.-]+|[./~].*)$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None
    language: LanguageCode
    task: Literal["transcribe", "translate"]
    scratch: Scratch

    @model_validator(mode="after")
    def base_is_pinned(self) -> Self:
        if (self.base == "scratch") != (self.revision is None):
            raise ValueError("revision must be null for scratch; a Hub id wants its commit, a folder its digest")
        return self


class Synthetic(Section):
    train: Count
    validation: Count
    test: Count
    seed: Seed


# Common Voice's tables; validation is what its file calls dev.
TableName = Literal["train", "validation", "dev", "test", "validated", "other", "invalidated"]


class Tables(Section):
    tables: Annotated[list[TableName], Field(min_length=1)]
    limit: Count | None


class ValidationTables(Section):
    tables: list[TableName]
    limit: Count | None


def release_text(value: object) -> object:
    """A release that was written without quotes, which YAML takes for a number."""
    return f"{value:.1f}" if isinstance(value, float) else value


class CommonVoice(Section):
    archive: Annotated[str, Field(min_length=1)] | None
    release: Annotated[str, BeforeValidator(release_text), Field(pattern=r"^(\d+\.\d+|[a-zA-Z][\w.-]{6,})$")] | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    locale: Annotated[str, Field(min_length=1)] | None
    train: Tables
    validation: ValidationTables
    test: Tables
    held_out_speakers: Annotated[float, Field(gt=0, lt=1)] | None
    allow_overlap: Annotated[str, Field(min_length=1)] | None
    min_seconds: Annotated[float, Field(ge=0)]
    max_seconds: Annotated[float, Field(gt=0)]
    seed: Seed

    @model_validator(mode="after")
    def validation_comes_from_one_place(self) -> Self:
        if bool(self.validation.tables) == (self.held_out_speakers is not None):
            raise ValueError("either validation.tables is [] or held_out_speakers is null")
        return self

    @model_validator(mode="after")
    def release_is_named_once(self) -> Self:
        if (self.archive is None) == (self.release is None):
            raise ValueError("exactly one of archive and release must be null")
        if self.release is not None and self.locale is None:
            raise ValueError("a release wants its locale, such as sv-SE")
        return self


class Folder(Section):
    path: Annotated[str, Field(min_length=1)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None
    table: Annotated[str, Field(min_length=1)] | None
    validation: Annotated[float, Field(ge=0, lt=1)]
    test: Annotated[float, Field(ge=0, lt=1)]
    limit: Count | None
    min_seconds: Annotated[float, Field(ge=0)]
    max_seconds: Annotated[float, Field(gt=0)]
    seed: Seed

    @model_validator(mode="after")
    def shares_leave_some_to_train(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must be less than 1: the rest is train")
        return self


Reason = Annotated[str, Field(pattern=r"^[\w ,'-]+$")]  # a key of counts
UNPINNED = "must be the data set's commit; `tools.recipe set --pin` looks it up"
ClipId = Annotated[str, Field(min_length=1)]


HubSplitName = Annotated[str, Field(min_length=1)]


class HubSplit(Section):
    splits: Annotated[list[HubSplitName], Field(min_length=1)]
    limit: Count | None


class HubHeldOut(Section):
    splits: list[HubSplitName]
    limit: Count | None
    share: Annotated[float, Field(gt=0, lt=1)] | None

    @model_validator(mode="after")
    def clips_come_from_one_place(self) -> Self:
        if bool(self.splits) == (self.share is not None):
            raise ValueError(
                "either splits is [] or share is null: a data set without this split gives a share of train"
            )
        return self


class Hub(Section):
    id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    config: Annotated[str, Field(min_length=1)] | None
    audio: Annotated[str, Field(min_length=1)]
    text: Annotated[str, Field(min_length=1)]
    speaker: Annotated[str, Field(min_length=1)] | None
    train: HubSplit
    validation: HubHeldOut
    test: HubHeldOut
    min_seconds: Annotated[float, Field(ge=0)]
    max_seconds: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def shares_leave_some_to_train(self) -> Self:
        if (self.validation.share or 0) + (self.test.share or 0) >= 1:
            raise ValueError("validation.share and test.share together must be less than 1: the rest is train")
        return self


CorpusName = Literal["synthetic", "common_voice", "folder", "hub"]
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]  # begins its clips' ids, up to a full stop


class Source(Section):
    """A corpus, and what it changes of the section of its name. Keys that are left out are as here."""

    corpus: CorpusName
    set: dict[str, Any] = {}
    limit: Count | None = None


class TrainSource(Source):
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    train_only: bool = False


class Probe(Source):
    language: LanguageCode | None = None


class Download(Section):
    corpus: CorpusName
    corpora: dict[SourceName, TrainSource]
    probes: dict[SourceName, Probe]
    drop: dict[Reason, list[ClipId]]
    synthetic: Synthetic
    common_voice: CommonVoice
    folder: Folder
    hub: Hub

    @model_validator(mode="after")
    def sources_are_whole(self) -> Self:
        """Each source's section with its changes is as valid, and as pinned, as one that stands alone."""
        if both := sorted(self.corpora.keys() & self.probes.keys()):
            raise ValueError(
                f"corpora and probes are both called {both[0]}: ids begin with the name, so give one another"
            )
        problems = [] if self.corpora or self.corpus != "hub" or self.hub.revision else [f"hub.revision {UNPINNED}"]
        for place, source in self.sources().items():
            try:
                alone = self.alone(source)
            except ValidationError as error:
                lines = [
                    describe_error(
                        one["type"], one["loc"], one["msg"], one["input"], type(getattr(self, source.corpus))
                    )
                    for one in error.errors()
                ]
                problems += [f"{place}.set: {line.strip()}" for line in lines]
            else:
                problems += (
                    [f"{place}.set.revision {UNPINNED}"] if alone.corpus == "hub" and not alone.hub.revision else []
                )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def sources(self) -> dict[str, Source]:
        """Corpora and probes by their place in this section, in the order of their names."""
        kinds: dict[str, Mapping[str, Source]] = {"corpora": self.corpora, "probes": self.probes}
        return {f"{kind}.{name}": source for kind, named in kinds.items() for name, source in sorted(named.items())}

    def alone(self, source: Source) -> Self:
        """The section as it were with one source as the only corpus; raises ValidationError where that is not valid."""
        section = getattr(self, source.corpus)
        changed = type(section).model_validate(merge(section.model_dump(), source.set))
        alone = {"corpus": source.corpus, "corpora": {}, "probes": {}, source.corpus: changed}
        return self.model_copy(update=alone)

    def parts(self) -> dict[str, Self]:
        """What the splits are made of: a section for each of ``corpora``, by name, or this one where there are none."""
        return {name: self.alone(source) for name, source in sorted(self.corpora.items())} or {"": self}


def merge(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with changes laid over them."""
    return values | {
        key: merge(values[key], value) if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        for key, value in changes.items()
    }


class Featurize(Section):
    n_mels: Literal[80, 128]
    dtype: Literal["uint8", "float16"]
    max_seconds: Annotated[float, Field(gt=0, le=30)]
    clips_per_shard: Count


Place = Annotated[str, Field(pattern=r"^([a-z0-9]+://)?[\w./+=@-]+$")]  # a folder's path or URL, plain in a command


class Features(Section):
    train: Place
    validation: Place


# Kinds of linear layers in Whisper: of attention, and of the two feed-forward layers after it.
LinearLayer = Literal["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


class SpecAugment(Section):
    time_prob: Probability
    time_length: Annotated[int, Field(ge=1, le=50)]
    feature_prob: Probability
    feature_length: Annotated[int, Field(ge=1, le=80)]


class Augment(Section):
    lead_seconds: Annotated[float, Field(ge=0, le=5)]
    cut_seconds: Annotated[float, Field(ge=0, le=0.1)]
    gain: Annotated[float, Field(ge=0, le=60)]
    noise: Share
    babble: Share
    snr_low: Annotated[float, Field(ge=-20, le=60)]
    snr_high: Annotated[float, Field(ge=-20, le=60)]
    speed: Annotated[float, Field(ge=0, le=0.5)]
    tempo: Annotated[float, Field(ge=0, le=0.5)]
    reverberation: Share

    @model_validator(mode="after")
    def range_is_one(self) -> Self:
        if self.snr_low > self.snr_high:
            raise ValueError(f"snr_low must not exceed snr_high ({self.snr_high:g})")
        return self


class LabelText(Section):
    quotation_marks: Literal["keep", "remove"]
    case: Literal["keep", "lower"]
    final_full_stop: Literal["keep", "remove"]


class Lora(Section):
    rank: Annotated[int, Field(ge=0, le=1024)]
    alpha: Count
    dropout: Probability
    targets: Annotated[list[LinearLayer], Field(min_length=1)]


def check_frozen(value: object) -> object:
    """What of the encoder stays as it is; raises ValueError."""
    if value in (None, "encoder") or (type(value) is int and value > 0):
        return value
    raise ValueError("must be null, encoder, or a number of the encoder's lower layers")


class Train(Section):
    seed: Seed
    context: Literal["clip", "full"]
    margin_seconds: Annotated[float, Field(ge=0, le=5, multiple_of=0.5)]
    full_context_share: Share
    filled_window_share: Share
    timestamp_share: Share
    prompt_share: Share
    batch_size: Count
    batch_seconds: Annotated[float, Field(gt=0)] | None
    gradient_accumulation: Count
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    schedule: Literal["linear", "cosine", "constant"]
    warmup_steps: Annotated[int, Field(ge=0)]
    max_steps: Count | None
    epochs: Annotated[float, Field(gt=0)] | None
    log_every: Count
    eval_every: Count
    save_every: Count
    patience: Count | None
    weight_decay: Annotated[float, Field(ge=0)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    optimizer: Literal["adamw", "adamw_8bit", "muon"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    gradient_checkpointing: Literal["none", "full_windows", "all"]
    freeze: Annotated[Literal["encoder"] | int | None, BeforeValidator(check_frozen)]
    lora: Lora
    max_label_tokens: Annotated[int, Field(ge=8, le=448)]
    generation_max_tokens: Annotated[int, Field(ge=8, le=448)]
    text: LabelText
    average: Annotated[int, Field(ge=0, le=50)]
    interpolate: list[Share]
    dropout: Probability
    attention_dropout: Probability
    activation_dropout: Probability
    layerdrop: Probability
    ctc_weight: Annotated[float, Field(ge=0, lt=1)]
    augment: Augment
    spec_augment: SpecAugment

    @model_validator(mode="after")
    def one_length(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("exactly one of max_steps and epochs must be null")
        return self

    @model_validator(mode="after")
    def ctc_has_something_to_teach(self) -> Self:
        if self.freeze == "encoder" and self.ctc_weight:
            raise ValueError("ctc_weight teaches the encoder, which freeze keeps as it is: set it to 0")
        return self

    @model_validator(mode="after")
    def logs_align(self) -> Self:
        for name in ("eval_every", "save_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(f"{name} must be a multiple of log_every ({self.log_every})")
        return self


class Conditions(Section):
    clips: Annotated[int, Field(ge=0)]
    lead_seconds: list[Annotated[float, Field(ge=0.01, le=10)]]
    cut_seconds: list[Annotated[float, Field(ge=0.01, le=0.1)]]  # of 0.8 s and more, for no clip loses over an eighth
    gain: list[Annotated[float, Field(ge=-60, le=60)]]
    snr: list[Annotated[float, Field(ge=-20, le=60)]]
    speed: list[Annotated[float, Field(ge=0.5, le=2)]]


class Evaluate(Section):
    bootstrap_samples: Annotated[int, Field(ge=100)]
    full_window_clips: Annotated[int, Field(ge=0)] | None
    conditions: Conditions
    seed: Seed


TrackerName = Literal["tensorboard", "wandb", "mlflow", "dvclive"]


def auto_or_from(least: int) -> PlainValidator:
    """``auto``, or a number; raises ValueError, once where a union's parts would each complain."""

    def check(value: object) -> object:
        if value == "auto" or (type(value) is int and value >= least):
            return value
        raise ValueError(f"must be auto, or a number from {least} on")

    return PlainValidator(check)


class Compute(Section):
    gpus: Annotated[int | Literal["auto"], auto_or_from(1)]
    processes: Count | None
    backend: Literal["processes", "dask", "ray"]
    address: Annotated[str, Field(min_length=1)] | None
    kept_gigabytes: Annotated[float, Field(ge=0)]
    decode_batch_size: Count
    loader_workers: Annotated[int | Literal["auto"], auto_or_from(0)]
    report_to: list[TrackerName]

    @model_validator(mode="after")
    def address_is_a_clusters(self) -> Self:
        if self.address is not None and self.backend == "processes":
            raise ValueError("address is a cluster's: set backend to dask or ray, or address to null")
        return self


class Keep(Section):
    local: Count
    remote: Count


class Checkpoints(Section):
    keep: Keep
    mirror: Annotated[str, Field(min_length=1)] | None


def check_network(text: str) -> str:
    """An address, or a network as 10.0.0.0/8; raises ValueError."""
    ip_network(text, strict=False)
    return text


class App(Section):
    models_in_memory: Count
    max_seconds: Count
    max_megabytes: Count
    quota_megabytes: Count
    hosts: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")]]
    proxies: list[Annotated[str, AfterValidator(check_network)]]
    queue: Count
    timeout_seconds: Count
    recordings: Annotated[str, Field(min_length=1)] | None


class Params(Section):
    whisper: Whisper
    download: Download
    featurize: Featurize
    features: Features
    train: Train
    evaluate: Evaluate
    compute: Compute
    checkpoints: Checkpoints
    app: App


def load_params(path: Path) -> Params:
    """Read and validate all of params.yaml.

    Raises UserError with every wrong key's path, what stands there and what is allowed.
    """
    return validate_params(read_yaml(path, YAML(typ="safe", pure=True)), path)


def read_yaml(path: Path, parser: YAML) -> Any:
    """What a YAML file holds; raises UserError where it is missing or not valid YAML."""
    try:
        return parser.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the project's root") from None
    except MarkedYAMLError as error:
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path} is not valid YAML{place}: {error.problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a number of too many digits
        raise UserError(f"{path} is not valid YAML: {error}") from None


def validate_params(values: object, path: Path) -> Params:
    """The values of params.yaml, which stand at path, as sections; raises UserError as ``load_params`` does."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = [describe_error(one["type"], one["loc"], one["msg"], one["input"]) for one in error.errors()]
        raise UserError("\n".join([f"{path}:", *lines])) from None


def describe_error(
    kind: str, keys: Sequence[str | int], message: str, value: object, section: type[BaseModel] = Params
) -> str:
    """One of pydantic's errors in a section as a line: the path of keys, what is wrong, what is allowed."""
    place = ".".join(map(str, keys)) or "the file"
    if kind == "missing":
        return f"  {place}: is missing"
    if kind == "extra_forbidden":
        allowed = section_keys(keys[:-1], section)
        near = difflib.get_close_matches(str(keys[-1]), allowed, n=1)
        return f"  {place}: no such key{f'; did you mean {near[0]}?' if near else ''} (allowed: {', '.join(allowed)})"
    found = "" if isinstance(value, dict) else f", found {value!r}"
    return f"  {place}: {message.removeprefix('Value error, ')}{found}"


def section_keys(keys: Sequence[str | int], section: type[BaseModel]) -> list[str]:
    """The keys that are allowed in the section at a path of keys below another."""
    found: Any = section
    for key in keys:
        named = get_args(found)  # of sections by name, as corpora are, all of which have the same keys
        found = named[1] if named else found.model_fields[str(key)].annotation
    return list(found.model_fields)

"""What the Hugging Face Hub accepts at the head of a README.md, so that cards are checked before they are sent.

Sources: huggingface/hub-docs, modelcard.md, docs/hub/repositories-licenses.md and spaces-config-reference.md.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.runtime.errors import one_line

LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
"""
NO_LANGUAGE = ("code", "multilingual")
HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def known_license(name: str) -> str:
    if name not in LICENSES.split():
        raise ValueError(f"must be one of the Hub's licenses, such as apache-2.0, mit or cc0-1.0, found {name!r}")
    return name


def known_language(code: str) -> str:
    if not re.fullmatch(r"[a-z]{2,3}", code) and code not in NO_LANGUAGE:
        raise ValueError(f"must be an ISO 639 code of two or three letters, {' or '.join(NO_LANGUAGE)}, found {code!r}")
    return code


def one_emoji(text: str) -> str:
    if not text or any(character.isascii() or character.isalnum() for character in text):
        raise ValueError(f"must be an emoji, found {text!r}")
    return text


def number_or_text(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be a number or a text, found {value!r}")
    return value


one_or_more = BeforeValidator(lambda value: value if isinstance(value, list) else [value])  # one alone is a list of one
Id = Annotated[str, Field(pattern=r"^([\w.-]+/)?[\w.-]+$", max_length=96)]
Ids = Annotated[list[Id], one_or_more]
Licenses = Annotated[list[Annotated[str, AfterValidator(known_license)]], one_or_more]
Languages = Annotated[list[Annotated[str, AfterValidator(known_language)]], one_or_more]
Texts = Annotated[list[str], one_or_more]
Colour = Literal["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]


class Metadata(BaseModel):
    """A mapping in which keys that the Hub does not know are allowed."""

    model_config = ConfigDict(strict=True, extra="allow")


class Task(Metadata):
    type: str
    name: str | None = None


class Dataset(Metadata):
    type: str
    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None


class Metric(Metadata):
    type: str
    value: Annotated[Any, AfterValidator(number_or_text)]
    name: str | None = None


class Evaluation(Metadata):
    task: Task
    dataset: Dataset
    metrics: Annotated[list[Metric], Field(min_length=1)]


class ModelResults(Metadata):
    name: str
    results: Annotated[list[Evaluation], Field(min_length=1)]


class ModelMetadata(Metadata):
    license: Licenses | None = None
    language: Languages | None = None
    library_name: str | None = None
    pipeline_tag: str | None = None
    base_model: Ids | None = None
    base_model_relation: Literal["adapter", "merge", "quantized", "finetune"] | None = None
    datasets: Ids | None = None
    metrics: Texts | None = None
    tags: Texts | None = None
    index: list[ModelResults] | None = Field(default=None, alias="model-index")


class SpaceMetadata(Metadata):
    title: str
    emoji: Annotated[str, AfterValidator(one_emoji)] | None = None
    colorFrom: Colour | None = None
    colorTo: Colour | None = None
    short_description: Annotated[str, Field(max_length=60)] | None = None
    sdk: Literal["gradio", "streamlit", "docker", "static"]
    sdk_version: Annotated[str, Field(pattern=r"^\d+\.\d+(\.\d+)?$")] | None = None
    python_version: Annotated[str, Field(pattern=r"^3\.\d+(\.\d+)?$")] | None = None
    app_file: str | None = None
    license: Licenses | None = None
    models: list[Id] | None = None
    tags: list[str] | None = None
    pinned: bool | None = None


RULES: dict[str, type[Metadata]] = {"model": ModelMetadata, "space": SpaceMetadata}


def read_metadata(readme: str) -> dict[str, Any]:
    """The values at a README's head; raises ValueError where it has none."""
    head = HEAD.match(readme)
    try:
        values = YAML(typ="safe", pure=True).load(head[1]) if head else None
    except YAMLError as error:
        raise ValueError(f"the metadata is not valid YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise ValueError("there is no metadata between two lines of ---")
    return values


def metadata_errors(readme: str, kind: str) -> list[str]:
    """What the Hub would refuse in the README of a ``model`` or a ``space``, a line each; [] where it is valid."""
    try:
        RULES[kind].model_validate(read_metadata(readme))
    except ValidationError as error:
        return [f'"{key_path(one["loc"])}" {error_text(one["type"], one["msg"])}' for one in error.errors()]
    except ValueError as error:
        return [str(error)]
    return []


def key_path(steps: Sequence[str | int]) -> str:
    """A value's path as the Hub writes it: ``model-index[0].name``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


def error_text(kind: str, message: str) -> str:
    return "is required" if kind == "missing" else message.removeprefix("Value error, ")


def readme_tags(readme: Path) -> list[str]:
    """The tags at a README's head; none where there is no such file or head."""
    try:
        return read_metadata(readme.read_text(encoding="utf-8")).get("tags") or []
    except (OSError, ValueError):
        return []

"""The model card of a release, and the README of its Space."""

import json
import math
import re
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from stages.asr.clips import SPLITS
from stages.params_file import yaml_text
from stages.runtime.errors import UserError
from stages.runtime.files import file_digest
from stages.versioning.pins import OWN_LENGTH, corpus_name, corpus_sources
from tools.publish.release import Release
from tools.report.records import probe_scores
from tools.report.terminal import interval_text, probe_note

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, SpaceCard

MARK = "viska"  # the tag by which we recognise our own cards
PROJECT_LICENSE = "mit"
WIDTH = 120  # columns of the card's text
TERMS = {
    "synthetic": "Speech made by espeak-ng from a small grammar of our own; it has nobody's voice.",
    "common_voice": (
        "[Common Voice](https://commonvoice.mozilla.org) is dedicated to the public domain (CC0-1.0).\n"
        "Its terms forbid sharing its audio, and trying to identify its speakers."
    ),
    "folder": "Recordings of our own, which are not published.",
    "hub": "Its page on the Hugging Face Hub says on what terms it may be used.",
}


FULL_WINDOW = "wer_full_window"  # what pipeline() gives, and so the snippet in the card
ROWS = {
    "WER, on the full window": FULL_WINDOW,
    "WER, at the clip's own length": "wer",
    "WER, known voices": "wer_known_speakers",
    "WER, new voices": "wer_new_speakers",
    "WER, raw text": "wer_raw",
    "WER under changed conditions": "wer_stressed",
    "CER": "cer",
}


def model_license(release: Release, given: str | None) -> str:
    """The card's license: ours from scratch, Whisper's for a Whisper; raises UserError where it must be given."""
    base = release.params["whisper"]["base"]
    if given:
        return given
    if base == "scratch":
        return PROJECT_LICENSE
    if base.startswith("openai/whisper-"):
        return "apache-2.0"
    raise UserError(f"the license of {base} is not known: look it up and give it, such as --license apache-2.0")


def model_card(release: Release, repo: str, license: str) -> "ModelCard":
    """A card for ``user/name`` on the Hub."""
    from huggingface_hub import ModelCard, ModelCardData

    title = repo.partition("/")[2]
    data = ModelCardData(
        language=release.language,
        license=license,
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition",
        base_model=release.base,
        base_model_relation="finetune" if release.base else None,
        datasets=release.datasets,
        metrics=["wer", "cer"],
        tags=["whisper", MARK, *(["synthetic"] if release.synthetic else [])],
        model_name=title,
        eval_results=eval_results(release),
    )
    parts = (
        f"# {title}",
        synthetic_warning(release),
        introduction(release),
        score_section(release),
        usage_section(release, repo),
        data_section(release),
        training_section(release),
        limits_section(release),
        provenance_section(release),
    )
    text = "\n\n".join(filter(None, parts))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def eval_results(release: Release) -> "list[EvalResult]":
    """The test scores as a model-index, first what ``pipeline()`` gives; what the demo hears is marked for it.

    Those on probes come last.
    """
    rates = release.metrics["evaluate/tuned"]
    rows = [
        ("wer", "WER, normalised text, on the full window", FULL_WINDOW, {}),
        ("wer", "WER, normalised text, at the clip's own length", "wer", {"context": OWN_LENGTH}),
        ("wer", "WER, raw text, at the clip's own length", "wer_raw", {}),
        ("cer", "CER, normalised text, at the clip's own length", "cer", {}),
    ]
    source = release.sources[0] if len(release.sources) == 1 else {"corpus": "several"}
    found = [
        eval_result(source, release.version.data, kind, name, rates[key], interval_arguments(rates, key) | args)
        for kind, name, key, args in rows
        if key in rates
    ]
    probes = corpus_sources(release.params["download"], "probes")
    for probe, scores in probe_scores(rates).items():
        name = f"{probe}: {corpus_name(probes[probe])}"
        found.append(eval_result(probes[probe], name, *rows[1][:2], scores["wer"], interval_arguments(scores, "wer")))
    return found


def eval_result(
    source: dict[str, Any], dataset: str, kind: str, name: str, value: float, arguments: dict[str, Any]
) -> "EvalResult":
    """A rate on the test split of a source, as ``Release.sources`` has them."""
    from huggingface_hub import EvalResult

    settings = source.get(source["corpus"], {})
    return EvalResult(
        task_type="automatic-speech-recognition",
        task_name="Speech recognition",
        dataset_type=settings.get("path") or settings.get("id") or source["corpus"],
        dataset_name=dataset,
        dataset_config=settings.get("locale") or settings.get("config"),
        dataset_split="test",
        metric_type=kind,
        metric_name=name,
        metric_value=value,
        metric_args=arguments or None,
    )


def interval_arguments(rates: dict[str, Any], key: str) -> dict[str, Any]:
    """A rate's interval as a model-index has it; {} where there is none."""
    if f"{key}_low" not in rates:
        return {}
    by = {"by": rates[f"{key}_by"]} if f"{key}_by" in rates else {}
    return {"confidence": 0.95, "low": rates[f"{key}_low"], "high": rates[f"{key}_high"]} | by


def language_name(release: Release) -> str:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return LANGUAGES[release.params["whisper"]["language"]].title()


def synthetic_warning(release: Release) -> str:
    """What nobody may overlook about a model of a synthetic corpus; "" for others."""
    if not release.synthetic:
        return ""
    name = language_name(release)
    return f"""> [!WARNING]
> **This model was trained on a synthetic corpus: it does not know {name}.** All it was trained on is sentences of
> a small grammar, spoken by a speech synthesiser. It transcribes those and fails on people; its scores say nothing
> about how well it understands {name}. It shows that a pipeline works."""


def introduction(release: Release) -> str:
    """Size, base, language and task."""
    whisper, base = release.params["whisper"], release.base
    if base:
        origin = f"[{base}](https://huggingface.co/{base}) at its commit `{whisper['revision']}`, fine-tuned"
    elif whisper["base"] == "scratch":
        origin = "a small Whisper, trained from scratch"
    else:
        origin = f"a Whisper of our own, of the digest `{whisper['revision']}`, fine-tuned"
    task = "to write down" if whisper["task"] == "transcribe" else "to translate into English"
    data = escape_markdown(release.version.data)
    return f"""{count_parameters(release) / 1e6:,.1f} M parameters: {origin} {task} {language_name(release)} speech.
Version `{release.name}` of a pipeline that [DVC](https://dvc.org) runs; training data: {data}."""


def escape_markdown(text: str) -> str:
    """Text as it stands, for a folder or an archive may be called anything."""
    return re.sub(r"([\\`*\[\]<>|~#!&])", r"\\\1", text)


def count_parameters(release: Release) -> int:
    """The number of parameters in the weights."""
    total = 0
    for path in release.model.glob("*.safetensors"):
        with safe_open(path, "numpy") as weights:
            names = weights.keys()
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return total


def markdown_table(head: str, rows: Iterable[str]) -> str:
    """A table in Markdown: its first column aligned left, the others right."""
    line = "|".join(["---", *["--:"] * (head.count("|") - 2)])
    return "\n".join([head, f"|{line}|", *rows])


def score_section(release: Release) -> str:
    """Before and after, with the intervals; first what the snippet gives, where that was measured."""
    before, after = (release.metrics[f"evaluate/{name}"] for name in ("pretrained", "tuned"))
    heading = "untrained" if before.get("untrained") else "before"
    rows = []
    for name, key in ROWS.items():
        if key in after:
            base = f"{before[key]:.1f}" if key in before else ""
            rows.append(f"| {name} | {base} | {after[key]:.1f} | {interval_text(after, key)} |")
    base_rates = probe_scores(before)
    for name, found in probe_scores(after).items():
        base = f"{base_rates[name]['wer']:.1f}" if name in base_rates else ""
        shared = release.metrics["download"]["probes"][name]["in_train"]
        rows.append(f"| WER on {name} | {base} | {found['wer']:.1f} | {probe_note(found, shared)} |")
    return f"""## Scores

In percent, on the test split of the same corpus, which training does not use: {after["clips"]:,} clips of
{after["words"]:,} words.

{markdown_table(f"| | {heading} | this model | 95 % interval |", rows)}

{score_notes(release)}"""


def score_notes(release: Release) -> str:
    """How to take the rows that there are."""
    after = release.metrics["evaluate/tuned"]
    notes = []
    if FULL_WINDOW in after:
        part = f", {after['full_window_clips']:,} of the clips" if after["full_window_clips"] < after["clips"] else ""
        notes.append(
            f"The first row is what the snippet below gives, on the full window of {release.window} s{part}; the "
            "others are decoded at each clip's own length, as this model's demo does."
        )
    if "wer_stressed" in after:
        notes.append(
            "Changed conditions are a lead of silence, a start cut off, gain, white noise and speed, each alone; the "
            "row is their mean."
        )
    if probes := corpus_sources(release.params["download"], "probes"):
        named = ", ".join(f"{name} ({escape_markdown(corpus_name(probe))})" for name, probe in probes.items())
        notes.append(f"Probes are test sets of other corpora, on which nothing was chosen: {named}.")
    notes.append(
        "WER and CER are on normalised text (lower case, no punctuation, letters and their marks kept), but for the "
        "row of raw text. Of the intervals by clip and by speaker (bootstraps over clips and over whole speakers) the "
        "wider one is given; of few speakers it is likely too narrow. A known voice is one that training uses too."
    )
    return textwrap.fill(" ".join(notes), WIDTH)


def usage_section(release: Release, repo: str) -> str:
    """A snippet that runs as it stands."""
    whisper = release.params["whisper"]
    forced = json.dumps({"language": whisper["language"], "task": whisper["task"]})
    return f"""## How to use it

```python
from transformers import pipeline

transcribe = pipeline("automatic-speech-recognition", model="{repo}")
print(transcribe("speech.wav", generate_kwargs={forced})["text"])
```

Language and task also stand in `generation_config.json`; forcing them keeps a Whisper from guessing. The model takes
{release.window} s at once: cut longer audio at pauses, as its demo does, or give `chunk_length_s={release.window}`."""


def data_section(release: Release) -> str:
    """How much there was of each split, what was left out, and on what terms."""
    rows = []
    for split in SPLITS:
        found, kept = release.metrics["download"][split], release.metrics[f"featurize/{split}"]
        dropped = sum(found["dropped"].values()) + sum(kept["dropped"].values())
        hours = kept["seconds"] / 3600
        rows.append(f"| {split} | {kept['clips']:,} | {hours:,.1f} | {found['speakers']:,} | {dropped:,} |")
    name = escape_markdown(release.version.data.rpartition(",")[0])
    named = "A **synthetic** corpus" if release.synthetic else name
    terms = "\n".join(TERMS[corpus] for corpus in release.corpora)
    return f"""## Data

{named}. {terms}

{markdown_table("| split | clips | hours | voices | clips left out |", rows)}"""


def training_section(release: Release) -> str:
    """The parameters as params.yaml has them, with its comments."""
    params, end = release.params, release.metrics["train"]
    whisper, download = params["whisper"], params["download"]
    probed = [probe["corpus"] for probe in corpus_sources(download, "probes").values()]
    which = "corpora" if download.get("corpora") else "corpus"
    used = dict.fromkeys([which, "probes", *release.corpora, *probed])
    chosen = {
        "whisper": {key: value for key, value in whisper.items() if key != "scratch" or whisper["base"] == "scratch"},
        "download": {key: download[key] for key in used if download.get(key)},
        "featurize": params["featurize"],
        "train": params["train"],
    }
    weights = f"step {end['best_step']:,} of {end['steps']:,}"
    if "weights" in end:
        weights = f"{end['steps']:,} steps ({end['weights']})"
    return f"""## Training

The weights of {weights}, whose WER on validation was the lowest:
{end["validation_wer"]:.1f} %.

```yaml
{yaml_text(chosen).strip()}
```"""


def limits_section(release: Release) -> str:
    """What it is for, and what it is not for."""
    if release.synthetic:
        use = "To try the pipeline, its demo and its tests. Not for people's speech."
    else:
        use = f"Drafts of {language_name(release)} transcripts of speech like its corpus's, for a person to correct."
    return f"""## Intended use and limits

{use}

- It leaves out, repeats or invents words, more so in noise, with several voices at once, and in dialects, accents and
  subjects that its corpus lacks. Silence and music may come out as text.
- It was measured on one release of one corpus. Scores on others do not compare.
- It tells neither who speaks nor how sure it is. Not for decisions about people, and not for surveillance."""


def provenance_section(release: Release) -> str:
    """What this version can be found and checked by."""
    pin = f"Git tag | `{release.name}`" if release.version.commit else "Git tag | none: a workspace's model"
    features = {split: f"data/features/{split}" for split in SPLITS} | release.params.get("features", {})
    paths = ("models/tuned", "models/pretrained", *features.values())
    rows = [pin, f"Git commit | `{release.revision}`"]
    rows += [f"`{path}`, MD5 by DVC | `{release.hashes[path]}`" for path in paths]
    for path in sorted(release.model.glob("*.safetensors")):
        rows.append(f"`{path.name}`, SHA-256 | `{file_digest(path)}`")
    return "## Where it comes from\n\n" + "\n".join(["| | |", "|---|---|", *(f"| {row} |" for row in rows)])


def space_card(release: Release, repo: str, app_file: str, gradio: str, python: str) -> "SpaceCard":
    """A Space's README: the head by which the Hub builds it, and a note for those who read its files.

    gradio, python: the versions to run app_file with.
    """
    from huggingface_hub import SpaceCard, SpaceCardData

    name, synthetic = language_name(release), release.synthetic
    data = SpaceCardData(
        title=f"{name} speech to text",
        emoji="🎙️",
        colorFrom="blue",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=gradio,
        python_version=python,
        app_file=app_file,
        license=PROJECT_LICENSE,
        models=[repo],
        tags=[MARK],
        pinned=False,
        short_description=f"A Whisper for {name}, trained on {'synthetic' if synthetic else 'real'} speech"[:60],
    )
    known = f" It was trained on a **synthetic** corpus and does not know {name}." if synthetic else ""
    text = f"""# {name} speech to text

The demo of [{repo}](https://huggingface.co/{repo}), version `{release.name}` at commit `{release.revision}`.{known}
`python -m tools.publish` wrote these files; it overwrites what is changed here.
"""
    return SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{text}")

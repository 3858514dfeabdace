"""The scores as text: a table for a terminal."""

from collections import Counter
from collections.abc import Mapping

from stages.asr.clips import SPLITS
from tools.report.records import Numbers, Record, dropped_counts, probe_scores

ROWS = {
    "WER": "wer",
    "WER, full window": "wer_full_window",
    "WER, stressed": "wer_stressed",
    "WER, known voices": "wer_known_speakers",
    "WER, new voices": "wer_new_speakers",
    "WER, raw text": "wer_raw",
    "CER": "cer",
}
SPEAKERS = {"wer": "speakers", "wer_known_speakers": "known_speakers", "wer_new_speakers": "new_speakers"}
EDIT_COUNTS = ("substitutions", "deletions", "insertions")
NEXT = """
Next: make report · dvc plots show --open · dvc metrics diff · data/transcripts/tuned.tsv, clip by clip
      dvc exp run -S train.learning_rate=1e-3
      dvc exp show --only-changed --keep 'wer$|wer_s' --drop 'Created|State|Exec|wer_|cer|best|val|.*/'"""


def render_text(records: list[Record]) -> str:
    """The table of each revision, and what to do next; raises UserError where scores are missing."""
    parts = []
    for record in records:
        name = f"{record.revision.name}\n" if len(records) > 1 else ""
        before, after, train = (record.needed(name) for name in ("evaluate/pretrained", "evaluate/tuned", "train"))
        for stage in ("download", *(f"featurize/{split}" for split in SPLITS)):
            record.needed(stage)
        shared = {name: found["in_train"] for name, found in record.numbers("download").get("probes", {}).items()}
        parts.append(name + "\n".join([table(before, after, shared), training(train, record), drops(record)]))
    return "\n\n".join(parts) + f"\n{NEXT}"


def table(before: Numbers, after: Numbers, shared: Mapping[str, dict[str, int]]) -> str:
    """The rows that the tuned model has, in percent, with their intervals; shared: what of each probe is in train."""
    heading = "untrained" if before.get("untrained") else "pretrained"
    lines = [f"{'Test, %':<20}{heading:>12}{'tuned':>8}   95 % interval"]
    for name, key in ROWS.items():
        if key in after:
            base = f"{before[key]:.1f}" if key in before else ""
            note = interval_text(after, key)
            lines.append(f"{name:<20}{base:>12}{after[key]:>8.1f}{f'   {note}' if note else ''}")
    base_rates = probe_scores(before)
    for name, found in probe_scores(after).items():
        base = f"{base_rates[name]['wer']:.1f}" if name in base_rates else ""
        note = probe_note(found, shared.get(name, {}))
        lines.append(f"{f'WER, {name}':<20}{base:>12}{found['wer']:>8.1f}   {note}")
    edits = ", ".join(f"{kind} {after[kind]}" for kind in EDIT_COUNTS)
    lines.append(f"{after['clips']} clips, {after['words']} words: {edits}")
    return "\n".join(lines)


def interval_text(scores: Numbers, key: str) -> str:
    """``1.0 to 4.3 by speaker, 4 speakers``: a rate's interval, what was drawn for it, and whose speech it rests on.

    Of the stressed rate, which has none, what it is the mean of. Older versions have that of ``wer`` alone, by clip.
    """
    if key == "wer_stressed":
        return f"mean of {scores['conditions']} conditions, {scores['condition_clips']:,} clips"
    if f"{key}_low" not in scores:
        return ""
    text = f"{scores[f'{key}_low']:.1f} to {scores[f'{key}_high']:.1f}"
    if by := scores.get(f"{key}_by"):
        text += f" by {by}"
    if speakers := scores.get(SPEAKERS.get(key, "")):
        text += f", {speakers} speaker{'s' * (speakers != 1)}"
    return text


def probe_note(scores: Numbers, shared: Mapping[str, int]) -> str:
    """A probe's interval, how many clips it has, and of how many train has sentence or audio too."""
    text = f"{interval_text(scores, 'wer')}, {scores['clips']:,} clips"
    return text + "".join(f", {count:,} with {what} in train" for what, count in shared.items())


def training(end: Numbers, record: Record) -> str:
    """What the tuned model learned from, and which weights it has."""
    clips = record.needed("featurize/train")
    heard = f"Trained on {clips['clips']} clips, {clips['seconds'] / 60:.0f} min"
    which = f"({end['weights']})" if "weights" in end else f"at step {end['best_step']} of {end['steps']}"
    return f"{heard}: validation WER {end['validation_wer']:.1f} % {which}"


def drops(record: Record) -> str:
    """How many clips were dropped by any stage, by reason."""
    counts = sum((Counter(reasons) for _, _, reasons in dropped_counts(record)), Counter[str]())
    return "Dropped: " + (", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "none")

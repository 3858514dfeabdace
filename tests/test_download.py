"""A corpus in the pipeline's own layout."""

import json

from stages.asr.clips import SPLITS, read_clips
from stages.download import download
from stages.params import load_params
from tests.support.material import write_params


def test_download_lists_marks_and_counts(tmp_path):
    sizes = {"train": 4, "validation": 2, "test": 4}  # train hears four of the twelve known voices
    values = {f"download.synthetic.{split}": number for split, number in sizes.items()}
    settings = load_params(write_params(tmp_path / "params.yaml", values)).download
    (tmp_path / "raw/train").mkdir(parents=True)
    (tmp_path / "raw/train/stale.wav").write_bytes(b"of an earlier run")
    counts = download(settings, tmp_path / "raw", tmp_path / "dropped.tsv", tmp_path / "details/download.json", 1)
    assert counts == json.loads((tmp_path / "details/download.json").read_text())
    assert {split: counts[split]["clips"] for split in SPLITS} == sizes
    assert not (tmp_path / "raw/train/stale.wav").exists()
    heard = {clip.speaker for clip in read_clips(tmp_path / "raw/train")}
    for clip in read_clips(tmp_path / "raw/test"):
        assert clip.known_speaker == ("yes" if clip.speaker in heard else "no")
        assert (tmp_path / "raw/test/audio" / clip.audio).is_file()
    assert (tmp_path / "dropped.tsv").read_text() == "split\tid\treason\tdetail\n"

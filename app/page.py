"""The demo's page: what stands where, and what happens when somebody clicks.

Nothing of a visitor is kept here: what one session has is in its browser, and in gradio's own state of that session.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse

from app import video
from app.comparison import mark
from app.formats import as_srt, as_txt, as_vtt
from app.hearing import Listener, Progress
from app.improvement import improving
from app.markup import bar, choices, details, joined, marked, sentence, transcript
from app.models import Models
from app.texts import clock, say
from app.visitor import LIGHT, PRIVATE, label, language_in, told, uploaded
from stages.asr.mel import MAX_SECONDS
from stages.asr.transcription import Segment
from stages.params import App
from stages.runtime.errors import UserError

FORMATS = {"txt": as_txt, "srt": as_srt, "vtt": as_vtt}
SHOW_EVERY = 0.3  # seconds between two pictures of the progress
ANSWER_EVERY = 1  # second between two answers to a program
KEEP_SECONDS = 3600  # that a file stays, beyond what one transcription may take
SWEEP_SECONDS = 600
STEM = 100  # characters of an upload's name in those of its text
SPEAKER = {"storage_key": "viska-speaker", "secret": "viska"}  # no secret: the id means nothing to anybody else
HIDDEN = gr.update(visible=False)
SMALL = {"interactive": False, "size": "sm", "min_width": 48}
COPY = "() => navigator.clipboard.writeText([...document.querySelectorAll('#%s span')].map(e => e.innerText).join(' '))"
QUEUE = "transcribe"  # of all that decodes, whoever asks for it


class Page(gr.Blocks):
    """Blocks that fetch nothing: gradio else reads a file named by an address from that address."""

    async def preprocess_data(self, block_fn, inputs, *rest, **more):
        def refuse(file: dict) -> dict:
            if is_http_url_like(file["path"]):
                raise gr.Error("A file is wanted here, not an address.", print_exception=False)
            return file

        traverse(inputs, refuse, is_file_obj_with_meta)
        return await super().preprocess_data(block_fn, inputs, *rest, **more)


def build(
    models: Models,
    settings: App,
    first: str | None,
    corpus: Path | None,
    params: Path = Path("params.yaml"),
    examples: tuple[Path, ...] = (),
    fetch: Callable = video.fetch,
) -> gr.Blocks:
    """The page, to be served by ``app.server``.

    first: the version that is chosen at the beginning, by default the first one. corpus: where "Improve it" puts clips;
    None leaves that part out. params: pins them. examples: sound files to click on. fetch: a video's sound.
    """
    listener, first = Listener(models, settings, fetch), first or models.versions[0].name
    keep = SWEEP_SECONDS, settings.timeout_seconds + KEEP_SECONDS
    with Page(title="viska", analytics_enabled=False, delete_cache=keep) as page:
        gr.Markdown(label("title"), elem_id="title")
        gr.Markdown(label("intro"))
        last = gr.State(None)  # the path and text of the newest short recording, to be corrected
        speaker = gr.BrowserState("", **SPEAKER)  # outside of the tabs, for a tab that was never opened is not there
        with gr.Tabs():
            with gr.Tab(label("transcribe")):
                transcribing(page, listener, first, last, examples)
            if corpus:
                with gr.Tab(label("improve")):
                    improving(page, corpus, params, last, speaker)
        add_api(listener, first)
    return page


def transcribing(page: gr.Blocks, listener: Listener, first: str, last: gr.State, examples: tuple[Path, ...]) -> None:
    """The tab that turns sound into text: ways in on the left, the text on the right."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            chosen = model_lists(page, listener.models, first)
            sources = ways_in(examples)
        with gr.Column(scale=3, min_width=300):
            view = View(last)
    page.load(view.ready, None, view.status, **LIGHT)
    how = {"concurrency_id": QUEUE, "show_progress_on": view.status, **PRIVATE}
    running = []
    for source, button, missing in sources:
        waiting = button.click(view.waiting, None, [view.status, view.stop], **LIGHT)
        running.append(waiting.then(transcriber(listener, view, missing), [source, *chosen], view.outputs, **how))
    view.stop.click(view.stopped, None, [view.status, view.stop], cancels=running, **LIGHT)


def model_lists(page: gr.Blocks, models: Models, first: str) -> list[gr.Dropdown]:
    """The model, and the one that it is compared with, each with a line on what is known of it."""
    none = (label("none"), "")
    model = gr.Dropdown(choices(models), value=first, label=label("model"), filterable=False)
    other = gr.Dropdown([none, *choices(models)], value="", label=label("other"), filterable=False)

    def describe(name: str, compared: str, request: gr.Request) -> list[dict]:
        versions = {version.name: version for version in models.versions}
        known = [versions.get(each) for each in (name, compared)]
        return [gr.update(info=details(version, language_in(request)) if version else "") for version in known]

    def renew() -> list[dict]:
        now = choices(models)
        return [gr.update(choices=now), gr.update(choices=[none, *now])]

    page.load(renew, None, [model, other], **LIGHT)  # tags may have come since the start
    for event in (page.load, model.change, other.change):
        event(describe, [model, other], [model, other], **LIGHT)
    return [model, other]


def ways_in(examples: tuple[Path, ...]) -> list[tuple[gr.components.Component, gr.Button, str]]:
    """Microphone, file and video address, each with its button and the text that asks for it where it is empty."""
    with gr.Tabs():
        with gr.Tab(label("speak")):
            microphone = gr.Audio(sources=["microphone"], label=label("microphone"), elem_id="microphone", buttons=[])
            speak = go_button("speak")
        with gr.Tab(label("file")):
            upload = gr.File(label=label("upload"), height=140, elem_id="upload")
            file = go_button("file")
            if examples:
                gr.Examples([str(path) for path in examples], upload, label=label("examples"), api_visibility="private")
        with gr.Tab(label("video")):
            url = gr.Textbox(label=label("url"), placeholder="https://www.youtube.com/watch?v=…", max_lines=1)
            watch = go_button("video")
    return [(microphone, speak, "no_microphone"), (upload, file, "no_file"), (url, watch, "no_url")]


def go_button(way: str) -> gr.Button:
    return gr.Button(label("transcribe"), variant="primary", elem_id=f"transcribe-{way}")


class Pane:
    """One model's text: its segments with their times, as they come, to be copied or had as files."""

    def __init__(self, place: str, visible: bool = True):
        with gr.Column(min_width=260, visible=visible) as self.column:
            self.text = gr.HTML(elem_id=place, elem_classes="text", container=True)
            with gr.Row():
                self.copy = gr.Button(label("copy"), **SMALL)
                self.files = [gr.DownloadButton(kind, **SMALL) for kind in FORMATS]
        self.copy.click(None, js=COPY % place, **LIGHT)
        self.outputs = [self.column, self.text, self.copy, *self.files]

    def begun(self, name: str | None) -> dict:
        """Empty, for a model, or hidden where there is none."""
        shown = {self.column: gr.update(visible=name is not None), self.text: transcript(name or "", [])}
        return shown | dict.fromkeys([self.copy, *self.files], gr.update(interactive=False))

    def done(self, segments: list[Segment], stem: str) -> dict:
        ready = {self.copy: gr.update(interactive=True)}
        for button, path in zip(self.files, write(segments, stem), strict=True):
            ready[button] = gr.update(value=path, interactive=True)
        return ready


class View:
    """All that a transcription changes on the page: each method gives the components' new values."""

    def __init__(self, last: gr.State):
        self.last = last
        self.status = gr.HTML(elem_id="status")
        self.stop = gr.Button(label("stop"), visible=False, size="md", elem_id="stop")
        with gr.Row():
            self.panes = [Pane("left"), Pane("right", visible=False)]
        self.outputs = [self.status, self.stop, last, *(part for pane in self.panes for part in pane.outputs)]

    def ready(self, request: gr.Request) -> str:
        return sentence(say(language_in(request), "ready"))

    def waiting(self, request: gr.Request) -> tuple[str, dict]:
        return sentence(say(language_in(request), "waiting")), gr.update(visible=True)

    def stopped(self, request: gr.Request) -> tuple[str, dict]:
        return sentence(say(language_in(request), "stopped")), HIDDEN

    def failed(self, language: str) -> dict:
        return {self.status: sentence(say(language, "failed")), self.stop: HIDDEN}

    def begun(self, names: list[str]) -> dict:
        update = {self.last: None}
        for pane, name in zip(self.panes, [*names, None], strict=False):
            update |= pane.begun(name)
        return update

    def grown(self, progress: Progress, language: str, names: list[str]) -> dict:
        texts = zip(self.panes, names, progress.segments, strict=False)
        return {self.status: bar(progress, language)} | {pane.text: transcript(*rest) for pane, *rest in texts}

    def done(self, progress: Progress, language: str, names: list[str], source: Path | str) -> dict:
        update = self.grown(progress, language, names)
        said = "done" if any(progress.segments) else "silence"
        update |= {self.status: sentence(say(language, said, heard=clock(progress.heard))), self.stop: HIDDEN}
        stem = source.stem[:STEM] if isinstance(source, Path) else "video"
        for pane, name, segments in zip(self.panes, names, progress.segments, strict=False):
            update |= pane.done(segments, f"{stem}-{name}")
        texts = list(map(joined, progress.segments))
        if len(texts) > 1:
            for pane, *rest in zip(self.panes, names, progress.segments, mark(*texts), strict=True):
                update[pane.text] = marked(*rest)
        if isinstance(source, Path) and progress.heard <= MAX_SECONDS:
            update[self.last] = {"path": str(source), "text": texts[0]}
        return update


def write(segments: list[Segment], stem: str) -> list[str]:
    """The text as a file in every format, in gradio's folder, from where they are offered and deleted in time."""
    folder = Path(tempfile.mkdtemp(dir=get_upload_folder()))
    paths = {folder / f"{stem}.{kind}": form for kind, form in FORMATS.items()}
    for path, form in paths.items():
        path.write_text(form(segments), encoding="utf-8")
    return list(map(str, paths))


def transcriber(listener: Listener, view: View, missing: str) -> Callable:
    """What a Transcribe button does, for sources of one kind; ``missing`` asks for a source."""

    def run(source, model: str, other: str, request: gr.Request) -> Iterator[dict]:
        language = language_in(request)
        names = list(dict.fromkeys(filter(None, (model, other))))
        with told(language):
            try:
                recording = source_of(source, language, missing)
                yield view.begun(names) | {view.status: bar(Progress(), language)}
                shown, progress = time.monotonic(), Progress()
                for progress in listener.hear(names, recording):
                    if time.monotonic() - shown > SHOW_EVERY:
                        yield view.grown(progress, language, names)
                        shown = time.monotonic()
            except Exception:
                yield view.failed(language)
                raise
            yield view.done(progress, language, names, recording)

    return run


def source_of(value: dict | str | None, language: str, missing: str) -> Path | str:
    """What somebody gave: the path of an upload, or the address of a video; raises UserError where it is nothing."""
    given = value.strip() if isinstance(value, str) else value
    if not given:
        raise UserError(say(language, missing))
    return given if isinstance(given, str) else uploaded(given, language)


def add_api(listener: Listener, first: str) -> None:
    """The endpoints /transcribe and /models of ``gradio_client``."""

    def transcribe(file: gr.FileData, model: str = first) -> Iterator[dict]:
        """The text of a sound or video file: its words, and its segments with their times in seconds, as they come."""
        with told("en"):
            answered = time.monotonic()
            for progress in listener.hear([model], uploaded(file)):
                if time.monotonic() - answered > ANSWER_EVERY:
                    yield answer(model, progress)
                    answered = time.monotonic()
            yield answer(model, progress)

    def list_models() -> list[dict]:
        """The versions to choose from: name, word error rate in percent with its 95 % interval, and data."""
        keys = "name", "commit", "wer", "wer_low", "wer_high", "data", "untrained"
        return [{key: getattr(version, key) for key in keys} for version in listener.models.versions]

    gr.api(transcribe, api_name="transcribe", concurrency_id=QUEUE)
    gr.api(list_models, api_name="models", queue=False)


def answer(model: str, progress: Progress) -> dict:
    """What a program gets; times in seconds, to the millisecond."""
    (segments,) = progress.segments
    parts = [{"start": round(each.start, 3), "end": round(each.end, 3), "text": each.text} for each in segments]
    return {"text": joined(segments), "segments": parts, "model": model}

"""The demo's page: what stands where, and what happens when somebody clicks.

Nothing of a visitor is kept here: what one session has is in its browser, and in gradio's own state of that session.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse

from app import video
from app.comparison import mark_differences
from app.events import (
    PRIVATE,
    UNQUEUED,
    Upload,
    as_gradio_errors,
    localized,
    request_client,
    request_language,
    upload_path,
)
from app.formats import as_srt, as_txt, as_vtt
from app.improve_tab import build_improve_tab
from app.models import Models
from app.rendering import (
    compared_html,
    model_choices,
    progress_html,
    status_html,
    transcript_html,
    transcript_text,
    version_details,
)
from app.texts import format_time, translate
from app.transcriber import FetchAudio, Transcriber, TranscriptionProgress
from app.turns import Turns
from stages.asr.mel import MAX_SECONDS
from stages.asr.transcription import Segment
from stages.params import App
from stages.runtime.errors import UserError

FORMATS = {"txt": as_txt, "srt": as_srt, "vtt": as_vtt}
PAGE_SECONDS = 0.3  # between two updates of the page
API_SECONDS = 1  # between two answers to a program
MAX_STEM = 100  # characters of an upload's name in those of its text
SPEAKER_STORAGE: dict[str, Any] = {  # no secret: the id means nothing to anybody else
    "storage_key": "viska-speaker",
    "secret": "viska",
}
FORGED = "This is not what the page sends: reload it and try again."
HIDDEN = gr.update(visible=False)
SMALL_BUTTON: dict[str, Any] = {"interactive": False, "size": "sm", "min_width": 48}
COPY_JS = (
    "() => navigator.clipboard.writeText([...document.querySelectorAll('#%s span')].map(e => e.innerText).join(' '))"
)
Update = dict[Any, Any]  # new values by component


class OfflineBlocks(gr.Blocks):
    """Blocks that fetch nothing, for gradio else reads a file named by an address from that address.

    What no page of ours sends is refused in a sentence: gradio would log a traceback for each.
    """

    async def preprocess_data(self, block_fn: BlockFunction, inputs: list, *rest: Any, **more: Any) -> list:
        def refuse(file: dict) -> dict:
            if is_http_url_like(file["path"]):
                raise gr.Error("Send a file, not its address.", print_exception=False)
            return file

        if block_fn.fn is None or not all(map(is_fitting, block_fn.inputs, inputs)):
            raise gr.Error(FORGED, print_exception=False)
        try:
            traverse(inputs, refuse, is_file_obj_with_meta)
            return await super().preprocess_data(block_fn, inputs, *rest, **more)
        except gr.Error:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise gr.Error(FORGED, print_exception=False) from None


def is_fitting(component: object, value: object) -> bool:
    """Whether a value is of the kind that a component has, or none."""
    if value is None:
        return True
    if isinstance(component, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(component, gr.Audio | gr.File):
        return isinstance(value, dict) and isinstance(value.get("path"), str)
    if isinstance(component, gr.Dropdown | gr.Textbox | gr.BrowserState):
        return isinstance(value, str)
    return True


def build_page(
    models: Models,
    settings: App,
    first: str | None,
    corpus: Path | None,
    params: Path = Path("params.yaml"),
    examples: tuple[Path, ...] = (),
    fetch_audio: FetchAudio = video.fetch_audio,
) -> gr.Blocks:
    """The page, to be served by ``app.server``.

    first: the version that is chosen at the beginning, by default the first one. corpus: where "Improve it" puts clips;
    None leaves that part out. params: pins them. examples: audio files to click on. fetch_audio: of a video.
    """
    transcriber = Transcriber(models, settings, fetch_audio, Turns(settings.queue))
    first = first or models.versions[0].name
    with OfflineBlocks(title="viska", analytics_enabled=False) as page:
        gr.Markdown(localized("title"), elem_id="title")
        gr.Markdown(localized("intro"))
        last = gr.State(None)  # the path and text of the newest short recording, to be corrected
        speaker = gr.BrowserState("", **SPEAKER_STORAGE)  # outside of the tabs: a tab never opened is not there
        with gr.Tabs():
            with gr.Tab(label=localized("transcribe")):
                build_transcribe_tab(page, transcriber, first, last, examples)
            if corpus:
                with gr.Tab(label=localized("improve")):
                    build_improve_tab(page, corpus, params, last, speaker)
        add_api(transcriber, first)
    return page


def build_transcribe_tab(
    page: gr.Blocks, transcriber: Transcriber, first: str, last: gr.State, examples: tuple[Path, ...]
) -> None:
    """The tab that turns speech into text: ways in on the left, the text on the right."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            chosen = model_dropdowns(page, transcriber.models, first)
            sources = source_inputs(examples)
        with gr.Column(scale=3, min_width=300):
            view = TranscriptionView(last)
    page.load(view.show_ready, None, view.status, **UNQUEUED)
    how: dict[str, Any] = {"concurrency_limit": None, "show_progress_on": view.status, **PRIVATE}
    running = []
    for source, button, missing in sources:
        queued = button.click(view.show_waiting, None, [view.status, view.stop], **UNQUEUED)
        handler = transcribe_handler(transcriber, view, missing)
        running.append(queued.then(handler, [source, *chosen], view.outputs, **how))
    view.stop.click(view.show_stopped, None, [view.status, view.stop], cancels=running, **UNQUEUED)


def model_dropdowns(page: gr.Blocks, models: Models, first: str) -> list[gr.Dropdown]:
    """The model, and the one that it is compared with, each with a line on what is known of it."""
    none = (localized("none"), "")
    model = gr.Dropdown(model_choices(models), value=first, label=localized("model"), filterable=False)
    other = gr.Dropdown([none, *model_choices(models)], value="", label=localized("other"), filterable=False)

    def describe(name: str, compared: str, request: gr.Request) -> list[dict]:
        versions = {version.name: version for version in models.versions}
        known = [versions.get(each) for each in (name, compared)]
        language = request_language(request)
        return [gr.update(info=version_details(version, language) if version else "") for version in known]

    def refresh() -> list[dict]:
        choices = model_choices(models)
        return [gr.update(choices=choices), gr.update(choices=[none, *choices])]

    page.load(refresh, None, [model, other], **UNQUEUED)  # tags may have come since the start
    for event in (page.load, model.change, other.change):
        event(describe, [model, other], [model, other], **UNQUEUED)
    return [model, other]


def source_inputs(examples: tuple[Path, ...]) -> list[tuple[gr.components.Component, gr.Button, str]]:
    """Microphone, file and video address, each with its button and the text that asks for it where it is empty."""
    with gr.Tabs():
        with gr.Tab(localized("speak")):
            microphone = gr.Audio(
                sources=["microphone"], label=localized("microphone"), elem_id="microphone", buttons=[]
            )
            speak_button = transcribe_button("speak")
        with gr.Tab(localized("file")):
            upload = gr.File(label=localized("upload"), height=140, elem_id="upload")
            file_button = transcribe_button("file")
            if examples:
                paths = list(map(str, examples))
                gr.Examples(paths, upload, label=localized("examples"), api_visibility="private")
        with gr.Tab(localized("video")):
            url = gr.Textbox(label=localized("url"), placeholder="https://www.youtube.com/watch?v=…", max_lines=1)
            video_button = transcribe_button("video")
    return [
        (microphone, speak_button, "no_microphone"),
        (upload, file_button, "no_file"),
        (url, video_button, "no_url"),
    ]


def transcribe_button(source: str) -> gr.Button:
    return gr.Button(localized("transcribe"), variant="primary", elem_id=f"transcribe-{source}")


class TranscriptPane:
    """One model's text: its segments with their times, as they come, to be copied or had as files."""

    def __init__(self, elem_id: str, visible: bool = True):
        with gr.Column(min_width=260, visible=visible) as self.column:
            self.text = gr.HTML(elem_id=elem_id, elem_classes="text", container=True)
            with gr.Row():
                self.copy = gr.Button(localized("copy"), **SMALL_BUTTON)
                self.files = [gr.DownloadButton(kind, **SMALL_BUTTON) for kind in FORMATS]
        self.copy.click(None, js=COPY_JS % elem_id, **UNQUEUED)
        self.outputs = [self.column, self.text, self.copy, *self.files]

    def show_start(self, name: str | None) -> Update:
        """Empty, for a model, or hidden where there is none."""
        start: Update = {self.column: gr.update(visible=name is not None), self.text: transcript_html(name or "", [])}
        return start | dict.fromkeys([self.copy, *self.files], gr.update(interactive=False))

    def show_downloads(self, segments: list[Segment], stem: str) -> Update:
        downloads: Update = {self.copy: gr.update(interactive=True)}
        for button, path in zip(self.files, write_downloads(segments, stem), strict=True):
            downloads[button] = gr.update(value=path, interactive=True)
        return downloads


class TranscriptionView:
    """All that a transcription changes on the page: each method gives the components' new values."""

    def __init__(self, last: gr.State):
        self.last = last
        self.status = gr.HTML(elem_id="status")
        self.stop = gr.Button(localized("stop"), visible=False, size="md", elem_id="stop")
        with gr.Row():
            self.panes = [TranscriptPane("left"), TranscriptPane("right", visible=False)]
        self.outputs = [self.status, self.stop, last, *(part for pane in self.panes for part in pane.outputs)]

    def show_ready(self, request: gr.Request) -> str:
        return status_html(translate(request_language(request), "ready"))

    def show_waiting(self, request: gr.Request) -> tuple[str, dict]:
        return status_html(translate(request_language(request), "waiting")), gr.update(visible=True)

    def show_stopped(self, request: gr.Request) -> tuple[str, dict]:
        return status_html(translate(request_language(request), "stopped")), HIDDEN

    def show_failure(self, language: str) -> Update:
        return {self.status: status_html(translate(language, "failed")), self.stop: HIDDEN}

    def show_start(self, names: list[str], language: str) -> Update:
        update: Update = {self.status: progress_html(TranscriptionProgress(), language), self.last: None}
        for pane, name in zip(self.panes, [*names, None], strict=False):
            update |= pane.show_start(name)
        return update

    def show_progress(self, progress: TranscriptionProgress, language: str, names: list[str]) -> Update:
        update: Update = {self.status: progress_html(progress, language)}
        for pane, name, segments in zip(self.panes, names, progress.segments, strict=False):
            update[pane.text] = transcript_html(name, segments)
        return update

    def show_result(
        self, progress: TranscriptionProgress, language: str, names: list[str], source: Path | str
    ) -> Update:
        update = self.show_progress(progress, language, names)
        text = translate(language, "done" if any(progress.segments) else "silence", time=format_time(progress.seconds))
        update |= {self.status: status_html(text), self.stop: HIDDEN}
        stem = source.stem[:MAX_STEM] if isinstance(source, Path) else "video"
        for pane, name, segments in zip(self.panes, names, progress.segments, strict=False):
            update |= pane.show_downloads(segments, f"{stem}-{name}")
        texts = list(map(transcript_text, progress.segments))
        if len(texts) > 1:
            compared = mark_differences(*texts)
            for pane, name, segments, pieces in zip(self.panes, names, progress.segments, compared, strict=True):
                update[pane.text] = compared_html(name, segments, pieces)
        if isinstance(source, Path) and progress.seconds <= MAX_SECONDS:
            update[self.last] = {"path": str(source), "text": texts[0]}
        return update


def write_downloads(segments: list[Segment], stem: str) -> list[str]:
    """The text as a file in every format, in gradio's folder, from where they are offered and deleted in time."""
    folder = Path(tempfile.mkdtemp(dir=get_upload_folder()))
    paths = {folder / f"{stem}.{kind}": form for kind, form in FORMATS.items()}
    for path, form in paths.items():
        path.write_text(form(segments), encoding="utf-8")
    return list(map(str, paths))


def transcribe_handler(
    transcriber: Transcriber, view: TranscriptionView, missing: str
) -> Callable[[Upload | str | None, str, str, gr.Request], Iterator[Update]]:
    """What a Transcribe button does, for sources of one kind; ``missing`` asks for a source."""

    def run(source: Upload | str | None, model: str, other: str, request: gr.Request) -> Iterator[Update]:
        language = request_language(request)
        names = list(dict.fromkeys(filter(None, (model, other))))
        with as_gradio_errors(language):
            try:
                recording = given_source(source, language, missing)
                yield view.show_start(names, language)
                updated, progress = time.monotonic(), TranscriptionProgress()
                for progress in transcriber.transcribe(names, recording, request_client(request)):
                    if time.monotonic() - updated > PAGE_SECONDS:
                        yield view.show_progress(progress, language, names)
                        updated = time.monotonic()
            except Exception:
                yield view.show_failure(language)
                raise
            yield view.show_result(progress, language, names, recording)

    return run


def given_source(value: Upload | str | None, language: str, missing: str) -> Path | str:
    """What somebody gave: the path of an upload, or the address of a video; raises UserError where it is nothing."""
    given = value.strip() if isinstance(value, str) else value
    if not given:
        raise UserError(translate(language, missing))
    return given if isinstance(given, str) else upload_path(given, language)


def add_api(transcriber: Transcriber, first: str) -> None:
    """The endpoints /transcribe and /models of ``gradio_client``."""

    def transcribe(request: gr.Request, file: gr.FileData, model: str = first) -> Iterator[dict]:
        """The text of an audio or video file, and its segments with their times in seconds, as they come."""
        with as_gradio_errors("en"):
            if not isinstance(model, str):
                raise UserError("model is the name of a version: see /models")
            answered = time.monotonic()
            for progress in transcriber.transcribe([model], upload_path(file), request_client(request)):
                if time.monotonic() - answered > API_SECONDS:
                    yield api_result(model, progress)
                    answered = time.monotonic()
            yield api_result(model, progress)

    def list_models() -> list[dict]:
        """The versions to choose from: name, word error rate in percent with its 95 % interval, and data."""
        keys = "name", "commit", "wer", "wer_low", "wer_high", "data", "untrained"
        return [{key: getattr(version, key) for key in keys} for version in transcriber.models.versions]

    gr.api(transcribe, api_name="transcribe", concurrency_limit=None)
    gr.api(list_models, api_name="models", queue=False)


def api_result(model: str, progress: TranscriptionProgress) -> dict:
    """What a program gets; times in seconds, to the millisecond."""
    (segments,) = progress.segments
    parts = [{"start": round(each.start, 3), "end": round(each.end, 3), "text": each.text} for each in segments]
    return {"text": transcript_text(segments), "segments": parts, "model": model}

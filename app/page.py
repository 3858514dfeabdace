"""The demo's page: what stands where, and what happens when somebody clicks.

Nothing of a visitor is kept here: what one session has is in its browser, and in gradio's own state of that session.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
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
    request_page,
    upload_path,
)
from app.formats import as_json, as_srt, as_txt, as_values, as_vtt
from app.improve_tab import build_improve_tab
from app.live import LiveSpeakers
from app.models import Models
from app.rendering import (
    compared_html,
    failed_text,
    is_synthetic,
    live_html,
    model_choices,
    player_html,
    progress_html,
    reference_html,
    status_html,
    transcript_html,
    transcript_text,
    version_details,
)
from app.texts import format_time, translate
from app.transcriber import FetchAudio, Transcriber, TranscriptionProgress
from app.turns import Orders, Turns
from stages.asr.mel import MAX_SECONDS
from stages.asr.segments import Segment, Word
from stages.corpora.examples import Example
from stages.params import App
from stages.runtime.errors import UserError

FORMATS = {"txt": as_txt, "srt": as_srt, "vtt": as_vtt, "json": as_json}
PAGE_SECONDS = 0.3  # between two updates of the page
API_SECONDS = 1  # between two answers to a program
MAX_STEM = 100  # characters of an upload's name in those of its text
SPEAKER_STORAGE: dict[str, Any] = {  # no secret: the id means nothing to anybody else
    "storage_key": "viska-speaker",
    "secret": "viska",
}
FORGED = "This is not what the page sends: reload it and try again."
HIDDEN = gr.update(visible=False)
SMALL_BUTTON: dict[str, Any] = {"interactive": False, "size": "sm", "min_width": 64}
COPY_JS = "() => { viskaCopy([...document.querySelectorAll('#%s span')].map(e => e.innerText).join(' ')) }"
# The first click lets the segments be edited; the second gives their texts to the server.
EDIT_JS = """() => {
    const texts = [...document.querySelectorAll('#%s span')], editing = texts.some(e => e.isContentEditable);
    texts.forEach(e => e.contentEditable = editing ? 'false' : 'true');
    editing || texts[0]?.focus();
    return [editing ? JSON.stringify(texts.map(e => e.innerText)) : '', null, null];
}"""
SPEAK_JS = "(model) => { viskaSpeak(model); return [model] }"
Source = tuple[Path | str, str]  # a file, or a video's address, and what is known to be said in it
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
    corpus: Path | None,
    params: Path = Path("params.yaml"),
    examples: Sequence[Example] = (),
    fetch_audio: FetchAudio = video.fetch_audio,
) -> gr.Blocks:
    """The page, to be served by ``app.server``.

    corpus: where "Improve it" puts clips; None leaves that part out. params: pins them. examples: to click on.
    fetch_audio: of a video.
    """
    transcriber = Transcriber(models, settings, fetch_audio, Turns(settings.queue))
    with OfflineBlocks(title="viska", analytics_enabled=False) as page:
        gr.Markdown(localized("title"), elem_id="title")
        gr.Markdown(localized("intro"))
        last = gr.State(None)  # the path and text of the newest short recording, to be corrected
        speaker = gr.BrowserState("", **SPEAKER_STORAGE)  # outside of the tabs: a tab never opened is not there
        with gr.Tabs():
            with gr.Tab(label=localized("transcribe")):
                build_transcribe_tab(page, transcriber, last, examples)
            if corpus:
                with gr.Tab(label=localized("improve")):
                    build_improve_tab(page, corpus, params, last, speaker)
        add_api(transcriber)
        add_live(transcriber)
    return page


def build_transcribe_tab(
    page: gr.Blocks, transcriber: Transcriber, last: gr.State, examples: Sequence[Example]
) -> None:
    """The tab that turns speech into text: ways in on the left, the text on the right."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            chosen = model_dropdowns(page, transcriber.models)
            buttons = example_buttons(examples)
            sources = source_inputs()
        with gr.Column(scale=3, min_width=300):
            view = TranscriptionView(last, Orders())
    page.load(view.show_ready, None, view.status, **UNQUEUED)
    how: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "multiple", "show_progress_on": view.status}
    microphone = sources[0][0]
    ways: list[tuple[Any, list[gr.components.Component], Callable[..., Iterator[Update]]]] = [
        *((each[1].click, [each[0]], transcribe_handler(transcriber, view, each[2])) for each in sources),
        *((button.click, [], example_handler(transcriber, view, example)) for button, example in buttons),
        (microphone.stop_recording, [microphone], transcribe_handler(transcriber, view, "no_microphone")),
    ]
    for event, source, handler in ways:
        queued = event(view.show_waiting, None, [view.status, view.stop], **UNQUEUED)
        queued.then(handler, [*source, *chosen], view.outputs, **how, **PRIVATE)
    microphone.start_recording(view.show_listening, chosen[0], view.outputs, js=SPEAK_JS, **UNQUEUED)
    microphone.pause_recording(None, None, None, js="() => { viskaPause() }", **UNQUEUED)
    microphone.stop_recording(None, None, None, js="() => { viskaStop() }", **UNQUEUED)
    view.stop.click(view.show_stopping, None, [view.status, view.stop], **UNQUEUED)


def model_dropdowns(page: gr.Blocks, models: Models) -> list[gr.Dropdown]:
    """The model, and the one that it is compared with, each with a line on what is known of it, and warnings below."""
    none = (localized("none"), "")
    model = gr.Dropdown(model_choices(models), value=models.first, label=localized("model"), filterable=False)
    other = gr.Dropdown([none, *model_choices(models)], value="", label=localized("other"), filterable=False)
    notice = gr.HTML(visible=False, elem_id="notice")

    def describe(name: str, compared: str, request: gr.Request) -> list[dict]:
        versions = {version.name: version for version in models.versions}
        known = [versions.get(each) for each in (name, compared)]
        language = request_language(request)
        details = [gr.update(info=version_details(version, language) if version else "") for version in known]
        failed = list(models.failed.items())
        warnings = [failed_text(each, reason, language) for each, reason in failed if each not in (name, compared)]
        if any(version and is_synthetic(version) for version in known):
            warnings.append(translate(language, "synthetic"))
        return [*details, gr.update(value="".join(map(status_html, warnings)), visible=bool(warnings))]

    def begin(request: gr.Request) -> list[dict]:
        choices, first = model_choices(models, request_language(request)), models.first
        chosen, compared, warned = describe(first, "", request)  # tags may have come since the start
        return [chosen | {"choices": choices, "value": first}, compared | {"choices": [none, *choices]}, warned]

    page.load(begin, None, [model, other, notice], **UNQUEUED)
    for box in (model, other):
        box.change(describe, [model, other], [model, other, notice], **UNQUEUED)
    return [model, other]


def example_buttons(examples: Sequence[Example]) -> list[tuple[gr.Button, Example]]:
    """A button an example, which says what is said in it."""
    if not examples:
        return []
    with gr.Column(elem_id="examples"):
        gr.Markdown(localized("examples"))
        return [(gr.Button(f"▸ {example.text}", size="sm"), example) for example in examples]


def source_inputs() -> list[tuple[Any, gr.Button, str]]:
    """Microphone, file and video address, each with its button and the text that asks for it where it is empty."""
    with gr.Tabs():
        with gr.Tab(localized("speak")):
            gr.Markdown(localized("insecure"), elem_classes="insecure-only")
            microphone = gr.Audio(
                sources=["microphone"], label=localized("microphone"), elem_id="microphone", buttons=[]
            )
            speak_button = transcribe_button("speak")
        with gr.Tab(localized("file")):
            upload = gr.File(label=localized("upload"), height=140, elem_id="upload")
            file_button = transcribe_button("file")
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
    """One model's text: its segments with their times, as they come, to be edited, copied or had as files."""

    def __init__(self, elem_id: str, last: gr.State, visible: bool = True):
        """last: the newest short recording and its text, which an edit changes too."""
        self.last = last
        self.saved = gr.State(None)  # the path of the text's JSON
        texts = gr.Textbox(visible=False)  # takes what was edited
        with gr.Column(min_width=260, visible=visible) as self.column:
            self.text = gr.HTML(elem_id=elem_id, elem_classes="text", container=True)
            with gr.Row(elem_classes="tools"):
                self.copy = gr.Button(localized("copy"), **SMALL_BUTTON)
                self.edit = gr.Button(localized("edit"), elem_id=f"edit-{elem_id}", **SMALL_BUTTON)
                self.files = [gr.DownloadButton(kind, **SMALL_BUTTON) for kind in FORMATS]
        self.copy.click(None, js=COPY_JS % elem_id, **UNQUEUED)
        outputs = [self.saved, self.copy, self.edit, *self.files]
        keep: dict[str, Any] = {"inputs": [texts, self.saved, last], "outputs": [last, *outputs]}
        self.edit.click(self.keep_changes, **keep, js=EDIT_JS % elem_id, **PRIVATE)
        self.outputs = [self.column, self.text, *outputs]

    def show_start(self, name: str | None) -> Update:
        """Empty, for a model, or hidden where there is none."""
        start: Update = {self.column: gr.update(visible=name is not None), self.text: transcript_html(name or "", [])}
        start |= dict.fromkeys([self.copy, *self.files], gr.update(interactive=False))
        return start | {self.edit: gr.update(value=localized("edit"), interactive=False)}

    def show_downloads(self, segments: list[Segment], stem: str) -> Update:
        downloads: Update = {self.copy: gr.update(interactive=True), self.edit: gr.update(interactive=bool(segments))}
        paths = write_downloads(segments, stem)
        for button, path in zip(self.files, paths, strict=True):
            downloads[button] = gr.update(value=path, interactive=True)
        return downloads | {self.saved: paths[-1]}

    def keep_changes(self, texts: str, saved: str | None, last: Upload | None, request: gr.Request) -> Update:
        """Begin to edit where there are no texts yet, or write the files anew with these."""
        language = request_language(request)
        with as_gradio_errors(language):
            if not texts:
                return {self.edit: translate(language, "keep")}
            path = upload_path({"path": saved}, language)
            segments = edit_segments(read_segments(path), texts)
            update = self.show_downloads(segments, path.stem) | {self.edit: translate(language, "edit")}
            return update | {self.last: last and {**last, "text": transcript_text(segments)}}


class TranscriptionView:
    """All that a transcription changes on the page: each method gives the components' new values."""

    def __init__(self, last: gr.State, orders: Orders):
        self.last, self.orders = last, orders
        self.status = gr.HTML(elem_id="status")
        self.stop = gr.Button(localized("stop"), visible=False, size="md", elem_id="stop")
        self.player = gr.HTML(visible=False, elem_id="player")
        self.reference = gr.HTML(visible=False, elem_id="reference")
        self.live = gr.HTML(live_html(), elem_id="live")
        with gr.Row():
            self.panes = [TranscriptPane("left", last), TranscriptPane("right", last, visible=False)]
        heard = [self.player, self.reference, self.live]
        self.outputs = [self.status, self.stop, last, *heard, *(part for pane in self.panes for part in pane.outputs)]

    def show_ready(self, request: gr.Request) -> str:
        return status_html(translate(request_language(request), "ready"))

    def show_waiting(self, request: gr.Request) -> tuple[str, dict]:
        self.orders.place(request_page(request))
        return status_html(translate(request_language(request), "waiting")), gr.update(visible=True)

    def show_stopping(self, request: gr.Request) -> Update:
        self.orders.stop(request_page(request))
        return self.show_stopped(request_language(request))

    def show_stopped(self, language: str) -> Update:
        return {self.status: status_html(translate(language, "stopped")), self.stop: HIDDEN}

    def show_listening(self, name: str, request: gr.Request) -> Update:
        """Nothing of what was before, while page.js writes what is being said."""
        self.orders.place(request_page(request))
        language = request_language(request)
        update = self.show_start([name], language, ("", ""))
        return update | {self.status: status_html(translate(language, "listening"))}

    def show_failure(self, language: str) -> Update:
        return {self.status: status_html(translate(language, "failed")), self.stop: HIDDEN}

    def show_start(self, names: list[str], language: str, source: Source) -> Update:
        path, said = source
        update: Update = {self.status: progress_html(TranscriptionProgress(), language), self.last: None}
        player = player_html(path, language) if isinstance(path, Path) else ""
        update |= {self.player: gr.update(value=player, visible=bool(player))}
        update |= {self.reference: gr.update(value=reference_html(said, "", language), visible=bool(said))}
        for pane, name in zip(self.panes, [*names, None], strict=False):
            update |= pane.show_start(name)
        return update

    def show_progress(self, progress: TranscriptionProgress, language: str, names: list[str], source: Source) -> Update:
        update: Update = {self.status: progress_html(progress, language)}
        for pane, name, segments in zip(self.panes, names, progress.segments, strict=False):
            update[pane.text] = transcript_html(name, segments, play_label(source, language))
        return update

    def show_result(self, progress: TranscriptionProgress, language: str, names: list[str], source: Source) -> Update:
        path, said = source
        update = self.show_progress(progress, language, names, source)
        text = translate(language, "done" if any(progress.segments) else "silence", time=format_time(progress.seconds))
        update |= {self.status: status_html(text), self.stop: HIDDEN, self.live: live_html()}
        stem = path.stem[:MAX_STEM] if isinstance(path, Path) else "video"
        for pane, name, segments in zip(self.panes, names, progress.segments, strict=False):
            update |= pane.show_downloads(segments, f"{stem}-{name}")
        texts = list(map(transcript_text, progress.segments))
        if said:
            update[self.reference] = reference_html(said, texts[0], language)
        if len(texts) > 1:
            compared = mark_differences(*texts)
            for pane, name, segments, pieces in zip(self.panes, names, progress.segments, compared, strict=True):
                update[pane.text] = compared_html(name, segments, pieces, play_label(source, language))
        if isinstance(path, Path) and progress.seconds <= MAX_SECONDS:
            update[self.last] = {"path": str(path), "text": texts[0]}
        return update


def play_label(source: Source, language: str) -> str:
    """What a segment's button does; "" for a video, whose audio is not kept."""
    return translate(language, "play") if isinstance(source[0], Path) else ""


def write_downloads(segments: list[Segment], stem: str) -> list[str]:
    """The text as a file in every format, in gradio's folder, from where they are offered and deleted in time."""
    folder = Path(tempfile.mkdtemp(dir=get_upload_folder()))
    paths = {folder / f"{stem}.{kind}": form for kind, form in FORMATS.items()}
    for path, form in paths.items():
        path.write_text(form(segments), encoding="utf-8")
    return list(map(str, paths))


def read_segments(path: Path) -> list[Segment]:
    """The segments of a JSON that ``as_json`` wrote."""
    segments = json.loads(path.read_text(encoding="utf-8"))["segments"]
    return [Segment(**{**each, "words": tuple(Word(**word) for word in each["words"])}) for each in segments]


def edit_segments(segments: list[Segment], texts: str) -> list[Segment]:
    """Segments with other texts, a JSON list; those that changed lose their words. Raises UserError."""
    try:
        edited = json.loads(texts)
    except ValueError:
        edited = None
    if not isinstance(edited, list) or [*map(type, edited)] != [str] * len(segments):
        raise UserError(FORGED)
    lines = [" ".join(text.split()) for text in edited]
    return [
        each if line == each.text else replace(each, text=line, words=())
        for each, line in zip(segments, lines, strict=True)
    ]


def transcribe_handler(
    transcriber: Transcriber, view: TranscriptionView, missing: str
) -> Callable[[Upload | str | None, str, str, gr.Request], Iterator[Update]]:
    """What a Transcribe button does, for sources of one kind; ``missing`` asks for a source."""

    def run(source: Upload | str | None, model: str, other: str, request: gr.Request) -> Iterator[Update]:
        def given(language: str) -> Source:
            return given_source(source, language, missing), ""

        yield from transcription_updates(transcriber, view, given, [model, other], request)

    return run


def transcription_updates(
    transcriber: Transcriber,
    view: TranscriptionView,
    given: Callable[[str], Source],
    models: list[str],
    request: gr.Request,
) -> Iterator[Update]:
    """What the page shows while a source is transcribed. given: the source, by the language to complain in."""
    language, page = request_language(request), request_page(request)
    names = list(dict.fromkeys(filter(None, models)))
    if not (order := view.orders.take(page)):
        return
    with as_gradio_errors(language):
        try:
            source = given(language)
            yield view.show_start(names, language, source)
            updated, progress = time.monotonic(), TranscriptionProgress()
            with closing(transcriber.transcribe(names, source[0], request_client(request))) as steps:
                for progress in steps:
                    if order.ended:
                        break
                    if time.monotonic() - updated > PAGE_SECONDS:
                        yield view.show_progress(progress, language, names, source)
                        updated = time.monotonic()
        except Exception:
            yield view.show_failure(language)
            raise
        if not order.ended:
            yield view.show_result(progress, language, names, source)
        elif view.orders.is_latest(page, order):
            yield view.show_stopped(language)


def example_handler(
    transcriber: Transcriber, view: TranscriptionView, example: Example
) -> Callable[[str, str, gr.Request], Iterator[Update]]:
    """What an example's button does: the browser gets a copy to play, which is deleted in time."""

    def run(model: str, other: str, request: gr.Request) -> Iterator[Update]:
        def given(language: str) -> Source:
            return Path(shutil.copy(example.path, tempfile.mkdtemp(dir=get_upload_folder()))), example.text

        yield from transcription_updates(transcriber, view, given, [model, other], request)

    return run


def given_source(value: Upload | str | None, language: str, missing: str) -> Path | str:
    """What somebody gave: the path of an upload, or the address of a video; raises UserError where it is nothing."""
    given = value.strip() if isinstance(value, str) else value
    if not given:
        raise UserError(translate(language, missing))
    return given if isinstance(given, str) else upload_path(given, language)


def add_api(transcriber: Transcriber) -> None:
    """The endpoints /transcribe and /models of ``gradio_client``."""

    def transcribe(request: gr.Request, file: gr.FileData, model: str = "") -> Iterator[dict]:
        """The text of an audio or video file, and its segments with their times in seconds, as they come.

        model: the name of a version, or "" for the one that the page begins with.
        """
        with as_gradio_errors("en"):
            if not isinstance(model, str):
                raise UserError("model is the name of a version: see /models")
            model = model or transcriber.models.first
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


def add_live(transcriber: Transcriber) -> None:
    """What the page's microphone calls with each piece of audio; no part of the API, for it may change."""
    speakers = LiveSpeakers(transcriber.models, transcriber.turns, transcriber.settings.max_seconds)

    def live(request: gr.Request, audio: str, rate: int, model: str, id: str = "", last: bool = False) -> dict:
        with as_gradio_errors(request_language(request)):
            if not all(isinstance(each, str) for each in (audio, model, id)) or not isinstance(rate, int):
                raise UserError(FORGED)
            return speakers.hear(id, audio, rate, model, last is True, request_client(request))

    gr.api(live, api_name="live", queue=False, api_visibility="undocumented")


def api_result(model: str, progress: TranscriptionProgress) -> dict:
    """What a program gets; times in seconds, to the millisecond."""
    (segments,) = progress.segments
    return {**as_values(segments), "model": model}

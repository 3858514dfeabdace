"""The tab "Improve it" of the page, which turns what people say into training material."""

import html
import secrets
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from app.events import PRIVATE, UNQUEUED, Upload, as_gradio_errors, localized, request_language, upload_path
from app.models import import_speech
from app.rendering import status_html
from app.texts import translate
from stages.params import load_params
from stages.runtime.errors import UserError


@dataclass(frozen=True)
class ImproveHandlers:
    """What the buttons do. corpus: where clips are kept. params: pins them. spoken: the language to read aloud."""

    corpus: Path
    params: Path
    spoken: str

    def show_next(self, previous: str, speaker: str, request: gr.Request) -> tuple[str, None, str]:
        """The next sentence for a speaker, who has an id from now on, and no recording of it yet."""
        import_speech()
        from app.corpus import sentences_to_read

        with as_gradio_errors(request_language(request)):
            speaker = speaker or secrets.token_hex(8)
            texts = sentences_to_read(self.corpus, self.spoken, speaker) or [""]
            following = texts.index(previous) + 1 if previous in texts else 0
            return texts[following % len(texts)], None, speaker

    def show_first(self, previous: str, speaker: str, request: gr.Request) -> tuple[str, str]:
        """The sentence that the page opens with; what was recorded before a slow server said it stays."""
        text, _, speaker = self.show_next(previous, speaker, request)
        return text, speaker

    def show_last(self, last: Upload | None, request: gr.Request) -> tuple[str, str]:
        """The last transcript and its recording, to be corrected."""
        language = request_language(request)
        with as_gradio_errors(language):
            if not last:
                raise UserError(translate(language, "nothing_to_correct"))
            return last["text"], str(upload_path(last, language))

    def save(
        self,
        file: Upload | None,
        text: str | None,
        consent: bool,
        speaker: str,
        last: Upload | None,
        request: gr.Request,
    ) -> tuple[str, str, None, str]:
        """Add a clip, and go on to the next sentence."""
        from app.corpus import CORRECTED, READ_ALOUD, save_clip

        language = request_language(request)
        with as_gradio_errors(language):
            text = text or ""
            for given, missing in ((consent is True, "no_consent"), (file, "no_recording"), (text.strip(), "no_words")):
                if not given:
                    raise UserError(translate(language, missing))
            path = upload_path(file, language)
            source = CORRECTED if last and path == Path(last["path"]) else READ_ALOUD
            agreed = translate(language, "consent")
            saved = save_clip(self.corpus, path, text, speaker or "", source, agreed, self.params)
            answer = status_html(translate(language, "saved_apart" if saved.command else "saved", count=saved.n_clips))
            command = f"<pre>{html.escape(saved.command)}</pre>" if saved.command else ""
            return answer + command, *self.show_next(text, speaker, request)


def build_improve_tab(page: gr.Blocks, corpus: Path, params: Path, last: gr.State, speaker: gr.BrowserState) -> None:
    """The tab. last: path and text of the newest short recording. speaker: the random id that a browser keeps."""
    handlers = ImproveHandlers(corpus, params, load_params(params).whisper.language)
    gr.Markdown(localized("improve_intro"))
    with gr.Row():
        with gr.Column(min_width=300):
            with gr.Row():
                another = gr.Button(localized("another"), size="sm")
                correct = gr.Button(localized("correct"), size="sm")
            said = gr.Textbox(label=localized("said"), lines=3, max_lines=8, elem_id="said")
        with gr.Column(min_width=300):
            gr.Markdown(localized("insecure"), elem_classes="insecure-only")
            recording = gr.Audio(sources=["microphone"], label=localized("recording"), elem_id="recording", buttons=[])
    consent = gr.Checkbox(label=localized("consent"), elem_id="consent")
    save = gr.Button(localized("save"), variant="primary", elem_id="save")
    answer = gr.HTML(elem_id="answer")
    form = [said, recording, speaker]
    page.load(handlers.show_first, [said, speaker], [said, speaker], **UNQUEUED)
    another.click(handlers.show_next, [said, speaker], form, **PRIVATE)
    correct.click(handlers.show_last, last, [said, recording], **PRIVATE)
    save.click(handlers.save, [recording, said, consent, speaker, last], [answer, *form], **PRIVATE)

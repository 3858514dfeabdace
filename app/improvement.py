"""The part "Improve it" of the page, which turns what people say into training material."""

import html
import secrets
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from app.corpus import CORRECTED, READ, save_clip, sentences
from app.markup import sentence
from app.texts import say
from app.visitor import LIGHT, PRIVATE, label, language_in, told, uploaded
from stages.params import load_params
from stages.runtime.errors import UserError


@dataclass(frozen=True)
class Improvement:
    """What the buttons do. corpus: where clips are kept. params: pins them. spoken: the language to read aloud."""

    corpus: Path
    params: Path
    spoken: str

    def show(self, old: str, who: str, request: gr.Request) -> tuple[str, None, str]:
        """The next sentence for somebody, who has an id from now on, and no recording of it yet."""
        with told(language_in(request)):
            who = who or secrets.token_hex(8)
            texts = sentences(self.corpus, self.spoken, who) or [""]
            following = texts.index(old) + 1 if old in texts else 0
            return texts[following % len(texts)], None, who

    def take(self, kept: dict | None, request: gr.Request) -> tuple[str, str]:
        """The last transcript and its recording, to be corrected."""
        language = language_in(request)
        with told(language):
            if not kept:
                raise UserError(say(language, "nothing_to_correct"))
            return kept["text"], str(uploaded(kept, language))

    def save(self, file: dict | None, text: str, agreed: bool, who: str, kept: dict | None, request: gr.Request):
        """Add a clip, and go on to the next sentence."""
        language = language_in(request)
        with told(language):
            for given, asked in ((agreed, "no_consent"), (file, "no_recording"), (text.strip(), "no_words")):
                if not given:
                    raise UserError(say(language, asked))
            path = uploaded(file, language)
            source = CORRECTED if kept and path == Path(kept["path"]) else READ
            saved = save_clip(self.corpus, path, text, who, source, say(language, "consent"), self.params)
            answer = sentence(say(language, "saved_apart" if saved.command else "saved", count=saved.n_clips))
            command = f"<pre>{html.escape(saved.command)}</pre>" if saved.command else ""
            return answer + command, *self.show(text, who, request)


def improving(page: gr.Blocks, corpus: Path, params: Path, last: gr.State, speaker: gr.BrowserState) -> None:
    """The tab. last: path and text of the newest short recording. speaker: the random id that a browser keeps."""
    does = Improvement(corpus, params, load_params(params).whisper.language)
    gr.Markdown(label("improve_intro"))
    with gr.Row():
        with gr.Column(min_width=300):
            with gr.Row():
                another = gr.Button(label("another"), size="sm")
                correct = gr.Button(label("correct"), size="sm")
            said = gr.Textbox(label=label("said"), lines=3, max_lines=8, elem_id="said")
        with gr.Column(min_width=300):
            recording = gr.Audio(sources=["microphone"], label=label("recording"), elem_id="recording", buttons=[])
    consent = gr.Checkbox(label=label("consent"), elem_id="consent")
    save = gr.Button(label("save"), variant="primary", elem_id="save")
    answer = gr.HTML(elem_id="answer")
    form = [said, recording, speaker]
    page.load(does.show, [said, speaker], form, **LIGHT)
    another.click(does.show, [said, speaker], form, **PRIVATE)
    correct.click(does.take, last, [said, recording], **PRIVATE)
    save.click(does.save, [recording, said, consent, speaker, last], [answer, *form], **PRIVATE)

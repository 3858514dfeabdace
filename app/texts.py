"""What the page says, in English and Swedish."""

ENGLISH = {
    "title": "viska: speech to text",
    "intro": "Choose a model, then speak, drop a file, or paste a video's address. The audio stays on the computer "
    "that runs this page.",
    "transcribe": "Transcribe",
    "model": "Model",
    "other": "Compare with",
    "none": "no other model",
    "speak": "Speak",
    "microphone": "Microphone",
    "file": "File",
    "upload": "An audio or video file",
    "examples": "Click an example, and read what the model hears:",
    "synthetic": "This model has heard nothing but a computer's voice, which says sentences of a small vocabulary. It "
    "understands such sentences, as in the examples, and hardly a person: expect nonsense when you speak.",
    "video": "Video",
    "url": "Address of a YouTube video",
    "stop": "Stop",
    "copy": "Copy",
    "edit": "Edit",
    "keep": "Keep the changes",
    "play": "Play from",
    "player": "The recording",
    "reference": "Said:",
    "progress": "Progress",
    "improve": "Improve it",
    "improve_intro": "Read the sentence aloud, or correct the transcript of your last recording. What you save becomes "
    "training material for the next model, on the computer that runs this page.",
    "another": "Another sentence",
    "correct": "Correct my last transcript",
    "recording": "Recording, at most 30 seconds",
    "said": "What is said, word for word",
    "consent": "I have the right to share this recording, and it may be kept and used to train speech recognition.",
    "save": "Save the recording",
    # Answers to what somebody did.
    "ready": "The text will appear here.",
    "waiting": "Waiting in the queue …",
    "place": "Waiting: number {place} in the queue, about {seconds} s …",
    "listening": "Listening: the text follows while you speak, and is made anew at the end.",
    "queue_full": "The queue is full: try again in a minute.",
    "loading": "Loading the model …",
    "downloading": "Downloading the video's audio … {percent} %",
    "transcribed": "{time} transcribed",
    "transcribed_of": "{time} of {total} transcribed",
    "done": "Done: {time} of audio.",
    "silence": "Nothing was said, or too quietly: no speech was found in {time} of audio.",
    "stopped": "Stopped.",
    "failed": "This did not work",
    "wer": "Word error rate {wer} %",
    "interval": " (95 % interval {low} to {high})",
    "unmeasured": "Not measured",
    "trained_on": "trained on {data}",
    "commit": "commit {commit}",
    "untrained": "untrained: it only guesses",
    "no_microphone": "There is no recording yet: press Record, speak, and press Stop recording first.",
    "no_file": "There is no file yet: drop one, or choose an example first.",
    "no_url": "There is no address yet: paste the address of a YouTube video first.",
    "gone": "The file is no longer here: add it again.",
    "timeout": "It took longer than the {limit} that one transcription may take: cut the recording into parts.",
    "broken": "Something went wrong, and it is not your fault: the program's log has the details.",
    "no_consent": "Nothing was saved: tick the box first if you agree.",
    "no_words": "Nothing was saved: first write down what is said.",
    "no_recording": "Nothing was saved: record something first.",
    "nothing_to_correct": "There is nothing to correct yet: transcribe something of at most 30 seconds first.",
    "saved": "Saved, thank you. There are {count} recordings by now; the next `dvc repro` trains on them.",
    "saved_apart": "Saved, thank you. There are {count} recordings by now; this makes `dvc repro` train on them:",
}

SWEDISH = {
    "title": "viska: tal till text",
    "intro": "Välj en modell och tala sedan, släpp en fil eller klistra in adressen till en video. Ljudet stannar på "
    "datorn som kör sidan.",
    "transcribe": "Transkribera",
    "model": "Modell",
    "other": "Jämför med",
    "none": "ingen annan modell",
    "speak": "Tala",
    "microphone": "Mikrofon",
    "file": "Fil",
    "upload": "En ljud- eller videofil",
    "examples": "Klicka på ett exempel och läs vad modellen hör:",
    "synthetic": "Den här modellen har bara hört en datorröst som säger meningar ur ett litet ordförråd. Den förstår "
    "sådana meningar, som i exemplen, men knappast en människa: vänta dig nonsens när du talar.",
    "video": "Video",
    "url": "Adressen till en YouTube-video",
    "stop": "Avbryt",
    "copy": "Kopiera",
    "edit": "Redigera",
    "keep": "Behåll ändringarna",
    "play": "Spela från",
    "player": "Inspelningen",
    "reference": "Sagt:",
    "progress": "Förlopp",
    "improve": "Förbättra",
    "improve_intro": "Läs upp meningen, eller rätta det som hördes i din senaste inspelning. Det du sparar blir "
    "träningsmaterial för nästa modell, på datorn som kör sidan.",
    "another": "En annan mening",
    "correct": "Rätta min senaste text",
    "recording": "Inspelning, högst 30 sekunder",
    "said": "Det som sägs, ord för ord",
    "consent": "Jag får ge bort den här inspelningen, och den får sparas och användas för att träna taligenkänning.",
    "save": "Spara inspelningen",
    "ready": "Texten kommer att stå här.",
    "waiting": "Väntar på tur …",
    "place": "Väntar: nummer {place} i kön, omkring {seconds} s …",
    "listening": "Lyssnar: texten följer medan du talar och görs om till slut.",
    "queue_full": "Kön är full: försök igen om en minut.",
    "loading": "Laddar modellen …",
    "downloading": "Hämtar videons ljud … {percent} %",
    "transcribed": "{time} transkriberat",
    "transcribed_of": "{time} av {total} transkriberat",
    "done": "Klart: {time} ljud.",
    "silence": "Ingenting sades, eller för tyst: inget tal hittades i {time} ljud.",
    "stopped": "Avbrutet.",
    "failed": "Det gick inte",
    "wer": "Ordfel {wer} %",
    "interval": " (95 %-intervall {low} till {high})",
    "unmeasured": "Inte mätt",
    "trained_on": "tränad på {data}",
    "commit": "commit {commit}",
    "untrained": "otränad: den bara gissar",
    "no_microphone": "Det finns ingen inspelning än: tryck på Spela in, tala, och tryck på Stoppa inspelning först.",
    "no_file": "Det finns ingen fil än: släpp en, eller välj ett exempel först.",
    "no_url": "Det finns ingen adress än: klistra in adressen till en YouTube-video först.",
    "gone": "Filen finns inte kvar här: lägg till den igen.",
    "timeout": "Det tog längre tid än de {limit} som en transkribering får ta: dela inspelningen i delar.",
    "broken": "Något gick fel här, och det är inte ditt fel: programmets logg berättar mer.",
    "no_consent": "Ingenting sparades: kryssa i rutan först om du samtycker.",
    "no_words": "Ingenting sparades: skriv ner det som sägs först.",
    "no_recording": "Ingenting sparades: spela in något först.",
    "nothing_to_correct": "Det finns inget att rätta än: transkribera något på högst 30 sekunder först.",
    "saved": "Sparat, tack. Nu finns det {count} inspelningar; nästa `dvc repro` tränar på dem.",
    "saved_apart": "Sparat, tack. Nu finns det {count} inspelningar; det här får `dvc repro` att träna på dem:",
}

LANGUAGES = {"en": ENGLISH, "sv": SWEDISH}  # the first where a browser wants none of them

KEY_PREFIX = "viska_"  # of the keys in the browser, where gradio has its own


def browser_texts() -> dict[str, dict[str, str]]:
    """All texts by language, under the browser's keys."""
    return {name: {KEY_PREFIX + key: text for key, text in texts.items()} for name, texts in LANGUAGES.items()}


def preferred_language(accepted: str | None) -> str:
    """The language that a browser wants most, of its Accept-Language header: ``sv-SE,sv;q=0.9,en;q=0.8``."""
    wanted = []
    for place, item in enumerate((accepted or "").lower().split(",")):
        name, _, quality = item.strip().partition(";q=")
        try:
            wanted.append((-float(quality or 1), place, name.split("-")[0]))
        except ValueError:
            continue
    return next((name for _, _, name in sorted(wanted) if name in LANGUAGES), next(iter(LANGUAGES)))


def translate(language: str, key: str, **values: object) -> str:
    return LANGUAGES[language][key].format(**values)


def format_decimal(language: str, value: float) -> str:
    """One decimal, with the language's own decimal separator."""
    text = f"{value:.1f}"
    return text.replace(".", ",") if language == "sv" else text


def format_time(seconds: float) -> str:
    """Seconds as people read them: 0:07, 12:30, 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""What the page says, in English and Swedish."""

import re

ENGLISH = {
    "title": "# viska: speech to text",
    "intro": "Choose a model, then speak, drop a file, or paste a video's address. The audio stays on the computer "
    "that runs this page.",
    "transcribe": "Transcribe",
    "model": "Model",
    "other": "Compare with",
    "none": "no other model",
    "speak": "Speak",
    "microphone": "Microphone",
    "insecure": "Browsers give the microphone only to pages of https and of their own computer: this one is neither.",
    "file": "File",
    "upload": "An audio or video file",
    "examples": "Click an example, and read what the model hears:",
    "synthetic": "This model has heard nothing but a computer's voice, which says sentences of a small vocabulary. It "
    "understands such sentences, as in the examples, and hardly a person: expect nonsense when you speak.",
    "not_first": "{name} is not chosen, for it could not be loaded: {reason}.",
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
    "fetching": "Fetching the model from its store … {percent} %",
    "downloading": "Downloading the video's audio … {percent} %",
    "transcribed": "{time} transcribed",
    "transcribed_of": "{time} of {total} transcribed",
    "done": "Done: {time} of audio.",
    "silence": "Nothing was said, or too quietly: no speech was found in {time} of audio.",
    "stopped": "Stopped.",
    "failed": "This did not work",
    "choice": "{name} · WER {wer} %",
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
    "title": "# viska: tal till text",
    "intro": "Välj en modell och tala sedan, släpp en fil eller klistra in adressen till en video. Ljudet stannar på "
    "datorn som kör sidan.",
    "transcribe": "Transkribera",
    "model": "Modell",
    "other": "Jämför med",
    "none": "ingen annan modell",
    "speak": "Tala",
    "microphone": "Mikrofon",
    "insecure": "Webbläsare ger mikrofonen bara till sidor över https och på den egna datorn: den här är ingetdera.",
    "file": "Fil",
    "upload": "En ljud- eller videofil",
    "examples": "Klicka på ett exempel och läs vad modellen hör:",
    "synthetic": "Den här modellen har bara hört en datorröst som säger meningar ur ett litet ordförråd. Den förstår "
    "sådana meningar, som i exemplen, men knappast en människa: vänta dig nonsens när du talar.",
    "not_first": "{name} är inte vald, för den gick inte att ladda: {reason}.",
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
    "fetching": "Hämtar modellen från fjärrlagringen … {percent} %",
    "downloading": "Hämtar videons ljud … {percent} %",
    "transcribed": "{time} transkriberat",
    "transcribed_of": "{time} av {total} transkriberat",
    "done": "Klart: {time} ljud.",
    "silence": "Ingenting sades, eller för tyst: inget tal hittades i {time} ljud.",
    "stopped": "Avbrutet.",
    "failed": "Det gick inte",
    "choice": "{name} · ordfel {wer} %",
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

# Sentences of errors that other modules, which know no language, have in English, and their parts; {} is what differs.
SWEDISH_ERRORS = {
    # A recording.
    "{} contains no audio: choose a file with an audio track": "{} innehåller inget ljud: välj en fil med ett ljudspår",
    "{} is not a readable audio or video file: {}; convert it to wav, mp3 or mp4": (
        "{} är ingen läsbar ljud- eller videofil: {}; gör om den till wav, mp3 eller mp4"
    ),
    "{} is not a readable audio file: {}": "{} är ingen läsbar ljudfil: {}",
    "nothing here decodes its audio": "inget här kan avkoda dess ljud",
    "it has {} samples a second": "den har {} värden per sekund",
    "it has {} channels": "den har {} kanaler",
    "it contains no samples": "den innehåller inget ljud",
    "it contains samples that are NaN or infinite": "den innehåller värden som inte är tal",
    "it cannot be decoded": "den går inte att avkoda",
    # FFmpeg's reasons.
    "Invalid data found when processing input": "innehållet är ogiltigt",
    "Invalid argument": "innehållet är ogiltigt",
    "End of file": "den slutar för tidigt",
    "Cannot allocate memory": "den begär för mycket minne",
    "Input/output error": "den går inte att läsa",
    "Permission denied": "den får inte läsas",
    "Operation not permitted": "den hänvisar till något som inte får läsas",
    "Protocol not found": "den hänvisar till något som inte får läsas",
    "Decoder not found": "inget här kan avkoda dess ljud",
    "Demuxer not found": "dess format är okänt här",
    "Not yet implemented in FFmpeg, patches welcome": "dess format är okänt här",
    "Numerical result out of range": "innehållet är ogiltigt",
    "{} lasts longer than {}, the most that is transcribed at once: cut it into shorter files": (
        "{} är längre än {}, det mesta som transkriberas på en gång: dela den i kortare filer"
    ),
    "{} lasts {}, longer than {}, the most that is transcribed at once: cut it into shorter files": (
        "{} är {} lång, mer än {}, det mesta som transkriberas på en gång: dela den i kortare filer"
    ),
    "this is more audio than may come at once, or than a recording may last": (
        "det här är mer ljud än som får komma på en gång, eller än en inspelning får vara"
    ),
    "one piece of audio at a time": "ett stycke ljud i taget",
    "nobody speaks under this id: begin anew": "ingen talar under det här id:t: börja om",
    "audio may have {} to {} samples a second": "ljud får ha {} till {} värden per sekund",
    "the audio is no base64 of 16-bit samples": "ljudet är inte base64 av värden med 16 bitar",
    # A model.
    "there is no model {}: choose one of {}": "det finns ingen modell {}: välj en av {}",
    "{} changed while it was read: try again once it is written": (
        "{} ändrades medan den lästes: försök igen när den är färdigskriven"
    ),
    "{} is being written or removed: try again once it is there": (
        "{} håller på att skrivas eller tas bort: försök igen när den är på plats"
    ),
    "{} cannot decode: {}: is it whole, and was it made by this project?": (
        "{} kan inte avkoda: {}: är den hel, och kommer den från det här projektet?"
    ),
    (
        "{}/generation_config.json lacks {}: a multilingual Whisper's names them all, with what to hear, such as"
        ' "language": "sv" and "task": "transcribe"'
    ): (
        "{}/generation_config.json saknar {}: en flerspråkig Whispers har alla, med vad som ska höras, till exempel"
        ' "language": "sv" och "task": "transcribe"'
    ),
    "{} contains no *.safetensors: run the stage that writes it, or `dvc pull`": (
        "{} innehåller ingen *.safetensors: kör steget som skriver den, eller `dvc pull`"
    ),
    "{} is not a Whisper model: {}": "{} är ingen Whisper-modell: {}",
    "its {} cannot be read: {}": "dess {} går inte att läsa: {}",
    "its {} is no JSON object": "dess {} är inget JSON-objekt",
    "its {} has a wrong {}: {}": "dess {} har fel {}: {}",
    "its {} is larger than {} MB": "dess {} är större än {} MB",
    "its config.json describes {} weights or more, and its weights have {} bytes": (
        "dess config.json beskriver minst {} vikter, och dess vikter har {} byte"
    ),
    "its weights lack {} ({} missing in all)": "dess vikter saknar {} ({} saknas i allt)",
    "its tokenizer is missing, or belongs to another model": "dess tokenizer saknas, eller hör till en annan modell",
    "{} is not available: {}": "{} är inte tillgänglig: {}",
    (
        "{}: its commit {} is not in this clone: run `git fetch --tags`, in a shallow clone `git fetch --tags"
        " --unshallow`"
    ): (
        "{}: dess commit {} finns inte i den här klonen: kör `git fetch --tags`, i en grund klon `git "
        "fetch --tags --unshallow`"
    ),
    "{}: DVC tracks no model {} at its commit {}": "{}: DVC har ingen modell {} i dess commit {}",
    "{}: its list of files {}": "{}: dess lista över filer {}",
    "{} is damaged: have whoever made it run `make push`": "{} är skadad: be den som gjorde den köra `make push`",
    "{} names {}, which is no file within a folder: nothing was written": (
        "{} nämner {}, som inte är en fil i en mapp: ingenting skrevs"
    ),
    "{} has no valid object id in DVC's files: {}": "{} har inget giltigt objekt-id i DVC:s filer: {}",
    (
        "{} is not in DVC's cache, and there is no default remote to fetch it from: run `dvc remote add "
        "--default NAME URL` with the URL of whoever made it, {}"
    ): (
        "{} finns inte i DVC:s cache, och det finns ingen förvald fjärrlagring att hämta den från: kör "
        "`dvc remote add --default NAMN URL` med adressen från den som gjorde den, {}"
    ),
    (
        "{} could not be fetched from the remote {} ({}): check the connection, have whoever made it run "
        "`make push`, {}"
    ): (
        "{} kunde inte hämtas från fjärrlagringen {} ({}): kontrollera anslutningen, be den som gjorde "
        "den köra `make push`, {}"
    ),
    "and try again, or run `dvc fetch {}`": "och försök igen, eller kör `dvc fetch {}`",
    "it does not answer, or lacks a part of it, or holds one that is damaged": (
        "den svarar inte, saknar en del av den, eller har en del som är skadad"
    ),
    "the program git is missing: install it": "programmet git saknas: installera det",
    # A video.
    "This is not the address of a YouTube video: paste one such as {}, or drop a file here": (
        "Det här är inte adressen till en YouTube-video: klistra in en som {}, eller släpp en fil här"
    ),
    "This is a playlist, a channel or a search: open one video of it, and paste the address of that": (
        "Det här är en spellista, en kanal eller en sökning: öppna en av dess videor och klistra in adressen till den"
    ),
    "This is a live broadcast: wait until it has ended and YouTube shows it as a video": (
        "Det här är en direktsändning: vänta tills den är slut och YouTube visar den som en video"
    ),
    "The video did not arrive within {} s: {}": "Videon kom inte fram inom {} s: {}",
    (
        "The video lasts {}, and at most {} is transcribed at once: download it, cut it, and drop the parts "
        "here one by one"
    ): (
        "Videon är {} lång, och högst {} transkriberas på en gång: ladda ner den, dela den och släpp "
        "delarna här en i taget"
    ),
    ("The audio of this video is larger than {} MB: download it, cut it, and drop the parts here one by one"): (
        "Videons ljud är större än {} MB: ladda ner den, dela den och släpp delarna här en i taget"
    ),
    "{}: download it where you can play it, and drop the file here": (
        "{}: ladda ner den där du kan spela upp den, och släpp filen här"
    ),
    "{}, or download it where you can play it, and drop the file here": (
        "{}, eller ladda ner den där du kan spela upp den, och släpp filen här"
    ),
    "download it where you can play it, and drop the file here": (
        "ladda ner den där du kan spela upp den, och släpp filen här"
    ),
    (
        "yt-dlp found no audio, and no JavaScript runtime, which YouTube may ask for: install Deno with {} "
        "(or Node 22, or QuickJS) and try again"
    ): (
        "yt-dlp hittade inget ljud, och inget program för JavaScript, vilket YouTube kan kräva: "
        "installera Deno med {} (eller Node 22, eller QuickJS) och försök igen"
    ),
    "YouTube gave no audio: a newer yt-dlp may find it ({})": (
        "YouTube gav inget ljud: en nyare yt-dlp kanske hittar det ({})"
    ),
    "YouTube cannot be reached, or the connection was lost": "YouTube går inte att nå, eller så bröts anslutningen",
    "YouTube refuses this machine, which it takes for a robot": (
        "YouTube nekar den här datorn, som den tar för en robot"
    ),
    "YouTube shows this video only to adults who sign in": "YouTube visar den här videon bara för vuxna som loggar in",
    "This video has to be paid for": "Den här videon kostar pengar",
    "This video is for the members of its channel": "Den här videon är för kanalens medlemmar",
    "This video is not available in the country where this machine is": (
        "Den här videon är inte tillgänglig i landet där den här datorn står"
    ),
    "This video is private": "Den här videon är privat",
    "This video is copy-protected": "Den här videon är kopieringsskyddad",
    "This video has not started yet": "Den här videon har inte börjat än",
    "There is no space left on this machine's disk": "Den här datorns disk är full",
    "YouTube is having problems of its own just now": "YouTube har egna problem just nu",
    "YouTube has no such video, or no longer has it": "YouTube har ingen sådan video, eller har den inte längre",
    "YouTube refuses to send this video to this machine": "YouTube vägrar skicka den här videon till den här datorn",
    # A recording to be kept.
    "The recording was not saved: agree first that it may be used": (
        "Inspelningen sparades inte: samtyck först till att den får användas"
    ),
    "The recording was not saved: the speaker has no valid id: reload the page": (
        "Inspelningen sparades inte: talaren har inget giltigt id: ladda om sidan"
    ),
    "The recording was not saved: {} cannot be written: {}": "Inspelningen sparades inte: {} går inte att skriva: {}",
    "The recording was not saved: write what is said in it": "Inspelningen sparades inte: skriv vad som sägs i den",
    (
        "The recording was not saved: its text has {} characters, and Whisper learns from at most {}: save a "
        "shorter piece"
    ): ("Inspelningen sparades inte: texten har {} tecken, och Whisper lär sig av högst {}: spara en kortare bit"),
    ("The recording was not saved: it lasts more than {} s, and Whisper takes no more at once: save a shorter piece"): (
        "Inspelningen sparades inte: den är längre än {} s, och Whisper tar inte mer på en gång: spara en kortare bit"
    ),
    "The recording was not saved: it is {} ({}): record it again": (
        "Inspelningen sparades inte: den är {} ({}): spela in den igen"
    ),
    "empty": "tom",
    "corrupt": "skadad",
    "too short": "för kort",
    "too long": "för lång",
    "0 bytes": "0 byte",
    "no samples": "inget ljud",
    "{} s, min_seconds is {}": "{} s, minst {} s behövs",
    "{} s, max_seconds is {}": "{} s, högst {} s är tillåtet",
    "{} holds another corpus ({}): name an empty folder in app.recordings": (
        "{} innehåller en annan korpus ({}): ange en tom mapp i app.recordings"
    ),
    "{} line {}: {}: fix it, or move the folder away": "{} rad {}: {}: rätta den, eller flytta undan mappen",
    "The recording was saved; write {}: {} into {} yourself": "Inspelningen sparades; skriv själv in {}: {} i {}",
    # An upload.
    "You have many files here already: try again in an hour.": "Du har redan många filer här: försök igen om en timme.",
    "You send many files at once: try again when they are here.": (
        "Du skickar många filer på en gång: försök igen när de har kommit."
    ),
    "The server holds as many files as it may: try again in some minutes.": (
        "Servern har så många filer som den får: försök igen om några minuter."
    ),
    "The server's disk is full: try again in some minutes.": "Serverns disk är full: försök igen om några minuter.",
    "This page does not go by the name {}: see app.hosts in params.yaml.": (
        "Den här sidan går inte under namnet {}: se app.hosts i params.yaml."
    ),
    "Another page may not use this one.": "En annan sida får inte använda den här.",
    "Another page may not use this one: if {} is this page's own name, put it in app.hosts of params.yaml.": (
        "En annan sida får inte använda den här: om {} är den här sidans namn, skriv in det i app.hosts i params.yaml."
    ),
    "The request is not as this page sends it.": "Begäran ser inte ut som den här sidans.",
    "An upload has to say how long it is.": "En uppladdning måste ange hur lång den är.",
    "A file may have {} MB: send a shorter one, or as mp3.": "En fil får ha {} MB: skicka en kortare, eller som mp3.",
    "The upload came too slowly: try again.": "Uppladdningen gick för långsamt: försök igen.",
    "An upload may have {} files: send them one by one.": "En uppladdning får ha {} filer: skicka dem en i taget.",
    "A request may have {} kB.": "En begäran får ha {} kB.",
    "The request came too slowly: try again.": "Begäran kom för långsamt: försök igen.",
    "The request's values are nested too deeply.": "Begärans värden är nästlade för djupt.",
}
ERRORS = {"sv": SWEDISH_ERRORS}

# What gradio says in the browser in English alone: regular expressions of JavaScript, and what replaces them.
GRADIO_SENTENCES = {
    "sv": {
        r"^File\(s\) exceed the maximum allowed size of (\S+) (\w+): (.*)$": "Filen är för stor, över $1 $2: $3",
        r"^Connection to the server was lost\. .*$": "Anslutningen till servern bröts. Försöker igen …",
        r"^Connection errored out\..*$": "Anslutningen till servern bröts: försök igen.",
        r"^This application is currently busy\..*$": "Servern är upptagen just nu: försök igen om en stund.",
        r"^(An )?Unexpected Error.*$|^Unknown error$|^Error uploading file.*$": "Något gick fel: försök igen.",
        r"^(.*)Failed to fetch$|^NetworkError.*$|^Load failed$": "Servern svarar inte: försök igen.",
    }
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


def translate_error(language: str, sentence: str) -> str:
    """A sentence of an error, and the parts that it quotes, in a language; as it is where there is no other."""
    for form, translated in ERRORS.get(language, {}).items():
        if match := re.fullmatch(re.escape(form).replace(r"\{\}", "(.+?)"), sentence, re.DOTALL):
            return translated.format(*(translate_error(language, part) for part in match.groups()))
    return sentence


def format_decimal(language: str, value: float) -> str:
    """One decimal, with the language's own decimal separator."""
    text = f"{value:.1f}"
    return text.replace(".", ",") if language == "sv" else text


def format_data(language: str, data: str) -> str:
    """What a model was trained on, ``synthetic, 3,000 clips``, in a language."""
    if language != "sv":
        return data
    data = re.sub(r"^synthetic\b", "syntetiskt tal", data)
    return re.sub(r"([\d,]+) clips$", lambda found: found[1].replace(",", "\xa0") + " klipp", data)


def format_time(seconds: float) -> str:
    """Seconds as people read them: 0:07, 12:30, 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

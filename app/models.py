"""The models that can be chosen, loaded once however many ask, the latest used of them kept in memory."""

import threading
from collections import OrderedDict
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stages.asr.mel import LOG_MEL_SILENCE
from stages.runtime.errors import UserError, one_line
from stages.versioning.pins import PublishedFolder, Repository, Version

if TYPE_CHECKING:
    from stages.asr.model import SpeechModel

Stamp = frozenset[tuple[str, int, int, int]]
IMPORTING = threading.Lock()


def import_speech() -> None:
    """Import torch and transformers, which the page is served without.

    That takes seconds, and may fail where two threads are at it: each module may see another half made.
    """
    with IMPORTING:
        import stages.asr.transcription  # noqa: F401


class Models:
    """What a repository or a Space has to choose from; safe to use from several threads.

    A SpeechModel may be used by several at once, for decoding only reads it; those in use live on when their place in
    memory goes to others. Versions with the same bytes share one.
    """

    def __init__(self, source: Repository | PublishedFolder, models_in_memory: int):
        self.source, self.models_in_memory = source, models_in_memory
        self.lock, self.load_lock = threading.Lock(), threading.Lock()
        self.pending: dict[str, Future[SpeechModel]] = {}
        self.loaded: OrderedDict[str, SpeechModel] = OrderedDict()  # by digest, the latest used last
        self.digests: dict[Path, tuple[Stamp, str]] = {}
        self.fetched: dict[str, float] = {}  # the share that has come, of each version that is being fetched
        self.wanted = [version.name for version in self.versions]  # to begin with, the best first
        self.failed: dict[str, str] = {}  # those of them that could not be loaded when the demo began, and why

    @property
    def versions(self) -> list[Version]:
        """Those that exist now: the newest pin first, then the workspace's, then the pretrained."""
        return self.source.versions()

    @property
    def first(self) -> str:
        """The version to begin with: the first that did not fail."""
        return next((name for name in self.wanted if name not in self.failed), self.wanted[0])

    def load(self, name: str) -> "SpeechModel":
        """A version's model, its bytes fetched and loaded where they are not yet, in evaluation mode.

        Whoever asks while another waits for the same version gets what that one gets. Raises UserError, which
        says what to do, where it is unavailable; a later call tries again.
        """
        with self.lock:
            first = name not in self.pending
            answer = self.pending.setdefault(name, Future())
        if first:
            try:
                answer.set_result(self.load_current(name))
                self.failed.pop(name, None)
            except BaseException as error:
                answer.set_exception(error)
            finally:
                with self.lock:
                    del self.pending[name]
                    self.fetched.pop(name, None)
        return answer.result()

    def load_current(self, name: str) -> "SpeechModel":
        """The model as its files are now: the workspace's may have been trained again."""
        folder = self.source.folder(self.version(name), partial(self.fetched.__setitem__, name))
        import_speech()
        from stages.asr.device import best_device
        from stages.asr.model import load_model

        before, digest = self.digest(folder)
        if model := self.loaded_model(digest):
            return model
        with self.load_lock:  # one at a time, so that memory stays bounded
            model = self.loaded_model(digest)
            if model is None:
                self.make_room()
                model = load_model(folder, best_device())
                check_decoding(model, folder)
                if self.digest(folder)[0] != before:
                    raise UserError(f"{folder} changed while it was read: try again once it is written")
                with self.lock:
                    self.loaded[digest] = model
        return model

    def version(self, name: str) -> Version:
        """The version of that name; raises UserError where there is none."""
        versions = {version.name: version for version in self.versions}
        if name not in versions:
            raise UserError(f"there is no model {name}: choose one of {', '.join(versions) or 'none'}")
        return versions[name]

    def digest(self, folder: Path) -> tuple[Stamp, str]:
        """A folder's stamp and the digest of its bytes, read again only where the stamp is another."""
        from stages.asr.model import folder_digest

        try:
            now = folder_stamp(folder)
            if self.digests.get(folder, (None, ""))[0] != now:
                self.digests[folder] = now, folder_digest(folder)
        except FileNotFoundError:
            raise UserError(f"{folder} is being written or removed: try again once it is there") from None
        return self.digests[folder]

    def loaded_model(self, digest: str) -> "SpeechModel | None":
        """A model from memory, from now on the latest used."""
        with self.lock:
            if digest in self.loaded:
                self.loaded.move_to_end(digest)
            return self.loaded.get(digest)

    def make_room(self) -> None:
        with self.lock:
            while len(self.loaded) >= self.models_in_memory:
                self.loaded.popitem(last=False)


def check_decoding(model: "SpeechModel", folder: Path) -> None:
    """Hear half a second of silence; raises UserError where a model's files fit one another too little for that."""
    import torch

    from stages.asr.decoding import GRID, context_frames, greedy_search

    said = vars(model.whisper.generation_config)
    if lacking := [name for name in ("language", "task", "lang_to_id", "task_to_id") if not said.get(name)]:
        raise UserError(
            f"{folder}/generation_config.json lacks {', '.join(lacking)}: a multilingual Whisper's names them all, with"
            ' what to hear, such as "language": "sv" and "task": "transcribe"'
        )
    try:
        silence = torch.full((1, model.whisper.config.num_mel_bins, model.window), LOG_MEL_SILENCE)
        context = context_frames(model, min(GRID, model.window))
        for token in greedy_search(model, silence[:, :, :context], 2)[0]:
            model.tokenizer.decode([token])
    except Exception as error:  # of torch, transformers, or Python's own, according to what does not fit
        raise UserError(
            f"{folder} cannot decode: {one_line(error)}: is it whole, and was it made by this project?"
        ) from None


def folder_stamp(folder: Path) -> Stamp:
    """What changes when a folder's files do: their names, sizes, times of change and inode numbers."""
    stats = [(path.name, path.stat()) for path in folder.iterdir()]
    return frozenset((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)


def repository_models(root: Path, models_in_memory: int) -> Models:
    """The models of a clone of the project, the pins among them; raises UserError where there is none at all."""
    return require_versions(Models(Repository(root), models_in_memory), "run `make repro` or `make pull`")


def folder_models(folder: Path, models_in_memory: int) -> Models:
    """The one model of a Space, a plain Hugging Face folder; raises UserError where it is none."""
    return require_versions(Models(PublishedFolder(folder), models_in_memory), f"{folder} holds no *.safetensors")


def require_versions(models: Models, advice: str) -> Models:
    if not models.versions:
        raise UserError(f"there is no model to choose: {advice}")
    return models

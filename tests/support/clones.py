"""Repositories with a Drive remote, as people on several machines have them."""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from oauth2client.client import OAuth2Credentials

from tests.support.drive import CLIENT, SCOPE, Drive
from tests.support.material import ROOT

ANNA = "anna@example.com"
QUICK_RETRIES = {"DRIVE_BACKOFF": "0.001", "DRIVE_TIMEOUT": "5", "DRIVE_PATIENCE": "60"}  # seconds
CONFIG = "[core]\n    analytics = false\n    remote = drive\n['remote \"drive\"']\n    url = gdrive://{}\n"


def clone_environment(drive: Drive, home: Path, **more: str) -> dict[str, str]:
    """Variables for a process on one person's machine."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    git = {f"GIT_{who}_{what}": "a@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return (
        drive.environment(home) | QUICK_RETRIES | git | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "300"} | more
    )


class Clone:
    """A repository and the machine it is on."""

    def __init__(self, drive: Drive, folder: Path):
        self.drive, self.folder, self.env = (
            drive,
            folder,
            clone_environment(drive, folder.parent / f"{folder.name}-home"),
        )

    def start(self, *command: str, **more: str) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        env = os.environ | self.env | more
        return subprocess.Popen(command, cwd=self.folder, env=env, text=True, start_new_session=True, **pipes)

    def run(self, *command: str, status: int = 0, typed: str = "", **more: str) -> str:
        """Run a command to its end; returns all it printed."""
        process = self.start(*command, **more)
        printed, _ = process.communicate(typed)
        assert process.returncode == status, f"{command} ended with {process.returncode}:\n{printed}"
        return printed

    def tool(self, *arguments: str, **options) -> str:
        return self.run("python", "-m", "tools.drive", *arguments, **options)

    def connect(self, account: str = ANNA, top: str | None = None) -> "Clone":
        """Write what ``connect`` writes for a person who signed in."""
        refresh = f"1//{self.drive.new_id()}"
        self.drive.refresh_tokens[refresh] = account
        uri, agent = "https://oauth2.googleapis.com/token", None
        ended = datetime(2020, 1, 1)
        signed = OAuth2Credentials("", *CLIENT.values(), refresh, ended, uri, agent, scopes=[SCOPE])
        (self.folder / ".dvc/tmp").mkdir(parents=True, exist_ok=True)
        (self.folder / ".dvc/tmp/drive.json").write_text(signed.to_json())
        lines = [f"    gdrive_{key} = {value}" for key, value in CLIENT.items()]
        lines += ["    gdrive_trash_only = true", "    gdrive_user_credentials_file = tmp/drive.json"]
        (self.folder / ".dvc/config.local").write_text("\n".join(["['remote \"drive\"']", *lines, ""]))
        (self.folder / ".dvc/config").write_text(CONFIG.format(top or self.drive.root))
        return self

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "state", "--allow-empty")

    def write(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(data)

    def read(self, names: object) -> dict[str, bytes | None]:
        paths = {name: self.folder / name for name in names}
        return {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()}

    def cached_objects(self) -> dict[str, bytes]:
        """The local cache, by name."""
        folder = self.folder / ".dvc/cache/files/md5"
        return {path.parent.name + path.name: path.read_bytes() for path in folder.glob("*/*")}


def sample_files(shards: int, models: int, others: int, size: int = 40) -> dict[str, bytes]:
    """Files as the pipeline has them: features in three splits, models of nine files, tables."""
    splits = ["train"] * (shards - 2) + ["validation", "test"]
    names = [f"data/features/{split}/{number:05}.zip" for number, split in enumerate(splits)]
    names += [f"models/{model}/{number}.bin" for model in ("pretrained", "tuned")[:models] for number in range(9)]
    names += [f"data/tables/{number}.tsv" for number in range(others)]
    return {name: (name.encode() * size)[: size * 25] for name in names}


def dvc_targets(files: dict[str, bytes]) -> list[str]:
    """What ``dvc add`` takes for them: folders of features and models, single tables."""
    return sorted({name if "tables" in name else name.rpartition("/")[0] for name in files})

"""DVC's remotes as one opens them: by name, and never waiting for ever."""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError

if TYPE_CHECKING:
    from dvc.data_cloud import Remote
    from dvc_objects.fs.base import FileSystem

TIMEOUT = 120  # seconds without an answer


def open_remote(root: Path, name: str) -> "Remote":
    """A remote of the repository at root; raises UserError where there is none of that name."""
    from dvc.config import ConfigError, RemoteConfigError  # seconds to import, and few need it
    from dvc.repo import Repo

    try:
        remote = Repo(str(root)).cloud.get_remote(name)
    except (RemoteConfigError, ConfigError) as error:
        raise UserError(str(error)) from None
    bound_waiting(remote.fs)
    return remote


def bound_waiting(fs: "FileSystem", seconds: float = TIMEOUT) -> None:
    """Have Google Drive's client give up a request that nobody answers; by default PyDrive2 waits for ever."""
    if fs.protocol == "gdrive":
        fs.fs.client.auth.http_timeout = seconds

"""What Git has: the output of its commands, and files as commits have them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from stages.runtime.errors import UserError


def run_git(root: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """What a Git command prints; raises UserError, with Git's own message, where it fails."""
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], input=stdin, capture_output=True)
    except FileNotFoundError:
        raise UserError("the program git is missing: install it") from None
    if result.returncode:
        raise UserError(" ".join(result.stderr.decode(errors="replace").split()) or f"git {arguments[0]} failed")
    return result.stdout


def read_blobs(root: Path, names: Sequence[str]) -> list[str | None]:
    """The texts of files, named ``<commit>:<path>``, by one call of Git; None for each that does not exist."""
    rest = run_git(root, "cat-file", "--batch", stdin="\n".join(names).encode())
    texts: list[str | None] = []
    for _ in names:
        head, _, rest = rest.partition(b"\n")
        if head.endswith(b" missing"):
            texts.append(None)
            continue
        size = int(head.rsplit(b" ", 1)[1])
        texts.append(rest[:size].decode(errors="replace"))
        rest = rest[size + 1 :]
    return texts

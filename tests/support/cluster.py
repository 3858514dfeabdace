"""Real schedulers and workers as processes on loopback."""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cloudpickle

from stages.runtime.imports import ROOT

RUN = """
import pickle, sys
run, arguments = pickle.load(sys.stdin.buffer)
pickle.dump(run(*arguments), sys.stdout.buffer)
"""


@contextlib.contextmanager
def dask_cluster(folder: Path, workers: int) -> Iterator[str]:
    """A scheduler that gives a task up with its first worker, and workers with one thread; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    environment = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    worker = ["worker", address, "--no-nanny", "--nthreads", "1", "--local-directory", str(folder)]
    with contextlib.ExitStack() as stack:
        for kind, *options in [["scheduler", "--host", "127.0.0.1", "--port", str(port)], *[worker] * workers]:
            words = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *options, "--no-dashboard"]
            log = stack.enter_context((folder / f"{kind}.log").open("a"))
            process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield address


class OneWorker:
    """A cluster of one worker, started in a folder for each task."""

    lost = ()

    def __init__(self, folder: Path, runner):
        self.folder, self.runner = folder, runner

    def slots(self) -> int:
        return 1

    def submit(self, *arguments):
        return cloudpickle.dumps((self.runner, arguments))

    def wait(self, handle: bytes):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        words = [sys.executable, "-P", "-c", RUN]  # without the checkout that this test stands in on its path
        done = subprocess.run(words, cwd=self.folder, env=environment, input=handle, check=True, stdout=subprocess.PIPE)
        return pickle.loads(done.stdout)

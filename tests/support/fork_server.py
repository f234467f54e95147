"""Processes that tests start: real ones, forked from a clean process in milliseconds.

A new interpreter imports for seconds, and a fork of pytest copies locks that its threads hold.
So each pytest process asks a server of its own: it imports once, has one thread, and forks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib.util
import io
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import FunctionType
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
CRASHED = 70  # an exception that nobody turned into a sentence
POLL_SECONDS = 0.005
# What guards against a hang only: a busy machine may take many times longer than a free one.
PATIENCE_SECONDS = 600.0

Work = Callable[[], "int | None"]


class _Pickler(pickle.Pickler):
    """Pickles what stands at the top of a test file by that file: the server cannot import it."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, (FunctionType, type)) or value is _find:
            return NotImplemented
        module = sys.modules[value.__module__]
        file = Path(getattr(module, "__file__", None) or "/")
        if TESTS not in file.parents:
            return NotImplemented
        if "<" in value.__qualname__:
            raise TypeError(
                f"{value.__qualname__} runs in another process and must stand at the top of its "
                "file; give it what it needs by functools.partial"
            )
        return _find, (module.__name__, str(file), value.__qualname__)


def _find(module_name: str, file: str, qualified_name: str) -> Any:
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
    value: Any = sys.modules[module_name]
    for name in qualified_name.split("."):
        value = getattr(value, name)
    return value


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


class ForkServer:
    """The asking side: starts processes, waits for them, and ends what is left of them.

    Args:
        module: the server imports it, and what its `import_all` says; every process has that.
    """

    def __init__(self, module: str = "") -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._running: set[int] = set()

    def start(self, work: Work, log: Path, environment: Mapping[str, str] | None = None) -> int:
        """Run `work` in a process of its own with its output behind `log`'s; return its id.

        It has this process's directory, environment (with `environment` besides) and filters of
        warnings. Its exit status is what `work` returns, 0 for None, or CRASHED.
        """
        filters = [
            (action, getattr(message, "pattern", message) or "", category,
             getattr(module, "pattern", module) or "", line)
            for action, message, category, module, line in warnings.filters
        ]  # fmt: skip
        surroundings = ({**os.environ, **(environment or {})}, os.getcwd(), filters)
        pid: int = self._ask("start", _pickled((work, str(log), *surroundings)))
        self._running.add(pid)
        return pid

    def wait(self, pid: int, seconds: float = PATIENCE_SECONDS) -> int:
        """Return the exit status of a process, or minus the signal that ended it; never hang."""
        end = time.monotonic() + seconds
        while (status := self._ask("reap", pid)) is None:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGABRT)  # writes to its log where it hangs
                time.sleep(1.0)
                self.end(pid)
                raise AssertionError(f"process {pid} did not end within {seconds} s")
            time.sleep(POLL_SECONDS)
        self._running.discard(pid)
        return int(status)

    def has_ended(self, pid: int) -> bool:
        """Whether a process that nobody has waited for yet is over."""
        return bool(self._ask("has ended", pid))

    def end(self, pid: int) -> None:
        """Kill a process that nobody has waited for yet."""
        os.kill(pid, signal.SIGKILL)  # one that has ended is a zombie until then
        while self._ask("reap", pid) is None:
            time.sleep(POLL_SECONDS)
        self._running.discard(pid)

    def end_all(self) -> None:
        """Kill every process that nobody has waited for."""
        for pid in tuple(self._running):
            self.end(pid)

    def close(self) -> None:
        """End the server and what is left of its processes."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.wait()
        self._process = self._connection = None
        self._running.clear()

    def _ask(self, kind: str, request: bytes | int) -> Any:
        try:
            if self._connection is None:
                self._open()
            assert self._connection is not None
            self._connection.send((kind, request))
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self.close()  # the next process has a new server
            raise AssertionError("the server of processes has died; its output is above") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _open(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MPLBACKEND": "Agg",
                # pyarrow, which pandas imports, starts a thread that only gives memory back
                "JE_ARROW_MALLOC_CONF": "background_thread:false",
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            }
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), self._module],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # the terminal's interrupt is for the asking side
            )


SERVER = ForkServer("real_runs")


def serve(connection: Connection, module: str) -> None:
    """Be the server until the asking side is gone."""
    if module:
        import_module(module).import_all()
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert len(threads) == 1, f"a fork of a process with threads may hang: {threads}"
    gc.collect()
    gc.freeze()
    running: set[int] = set()
    while True:
        try:
            kind, request = connection.recv()
        except EOFError:
            break
        try:
            if kind == "start":
                pid = os.fork()
                if pid == 0:
                    connection.close()
                    _work(request)
                running.add(pid)
                connection.send(pid)
            elif kind == "has ended":
                options = os.WEXITED | os.WNOHANG | os.WNOWAIT
                connection.send(os.waitid(os.P_PID, request, options) is not None)
            else:
                done, status = os.waitpid(request, os.WNOHANG)
                running.discard(done)
                connection.send(os.waitstatus_to_exitcode(status) if done else None)
        except (OSError, ValueError) as error:
            connection.send(error)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _work(pickled: bytes) -> None:
    """Be a process that a test has started; does not return."""
    status = CRASHED
    try:
        work, log, environment, folder, filters = pickle.loads(pickled)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        faulthandler.enable()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        warnings.resetwarnings()
        for action, message, category, module, line in reversed(filters):
            warnings.filterwarnings(action, message, category, module, line)
        status = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


if __name__ == "__main__":
    import_module("fork_server").serve(Connection(int(sys.argv[1])), sys.argv[2])

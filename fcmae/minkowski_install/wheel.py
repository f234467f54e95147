"""Wheels of MinkowskiEngine: built, kept in a cache, installed."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fcmae.minkowski_install.child import InstallError, last_line
from fcmae.minkowski_install.machine import Target, Tools

Say = Callable[[str], None]


def cache_key(target: Target, source_hash: str, edits_hash: str) -> str:
    """Name the wheel for `target` made of these sources and edits."""
    parts = (target.torch, target.python, target.cuda, source_hash, edits_hash)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def cached_wheel(cache: Path, key: str) -> Path | None:
    """Return the whole wheel kept under `key`, if there is one."""
    for wheel in sorted((cache / key).glob("*.whl")):
        try:
            with zipfile.ZipFile(wheel) as archive:
                if archive.testzip() is None:
                    return wheel
        except (OSError, zipfile.BadZipFile):
            continue
    return None


def keep_wheel(wheel: Path, cache: Path, key: str) -> Path:
    """Move a wheel into the cache, which shows all of it or nothing, and return its new place."""
    folder = cache / key
    folder.mkdir(exist_ok=True)
    partial = folder / f"{wheel.name}.{os.getpid()}.partial"
    try:
        shutil.copyfile(wheel, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        return partial.replace(folder / wheel.name)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def fetch_packages(tools: Tools, folder: Path) -> Tools:
    """Install what `tools` lacks into `folder` and return tools that look there first.

    Raises:
        InstallError: pip failed; names the packages, to be installed by hand.
    """
    failure = _pip_install("--target", str(folder), *tools.packages)
    if failure is not None:
        raise InstallError(
            f"pip could not fetch {' '.join(tools.packages)} for the build: {failure}. Install by "
            "hand and run again."
        )
    modules = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    path = os.pathsep.join([str(folder / "bin"), tools.environment["PATH"]])
    environment = tools.environment | {"PATH": path, "PYTHONPATH": modules}
    return replace(tools, environment=environment, packages=())


def build_wheel(source: Path, target: Target, tools: Tools, log: Path, say: Say) -> Path:
    """Build the sources, edited in place before, and return the wheel.

    Raises:
        InstallError: the build failed; names the first error and the log.
    """
    command = [sys.executable, "setup.py", "bdist_wheel", "--blas=openblas"]
    command.append("--force_cuda" if target.cuda else "--cpu_only")
    if tools.include:
        command.append(f"--blas_include_dirs={tools.include}")
    environment = os.environ | tools.environment
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment.setdefault("MAX_JOBS", str(cores))
    environment["PYTHONUNBUFFERED"] = "1"
    if tools.library:  # found at run time too; setup.py's own option does neither
        flags = f"-L{tools.library} -Wl,-rpath,{tools.library}"
        environment["LDFLAGS"] = f"{flags} {environment.get('LDFLAGS', '')}".strip()
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        print(*command, file=file, flush=True)
        with subprocess.Popen(
            command,
            cwd=source,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                for line in process.stdout or ():
                    file.write(line)
                    file.flush()
                    if progress := re.match(r"\[(\d+/\d+)\]", line):
                        say(f"  file {progress[1]} after {_minutes(time.monotonic() - start)}")
            except BaseException:  # an interrupt, say: the compilers stop too
                os.killpg(process.pid, signal.SIGTERM)
                raise
    wheels = sorted((source / "dist").glob("*.whl"))
    if process.returncode or not wheels:
        raise InstallError(
            f"building MinkowskiEngine failed (exit status {process.returncode}): "
            f"{_first_error(log)}; the whole log is {log}."
        )
    say(f"built in {_minutes(time.monotonic() - start)}; the log is {log}")
    return wheels[0]


def install_wheel(wheel: Path) -> None:
    """Install a wheel, and nothing else, into the running Python.

    Raises:
        InstallError: pip failed; carries its last line.
    """
    failure = _pip_install("--no-deps", "--no-index", "--force-reinstall", str(wheel))
    if failure is not None:
        raise InstallError(f"pip could not install {wheel}: {failure}")


def _pip_install(*words: str) -> str | None:
    """Run `pip install`; return the last line of its error, None where it succeeded."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    return last_line(done.stderr, "it said nothing") if done.returncode else None


def _first_error(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").partition("\n")[2]  # less the command
    if re.search(r"\bKilled\b", text):
        return "the compiler was killed, most likely for lack of memory; try MAX_JOBS=1"
    errors = [line for line in text.splitlines() if re.search(r"\b[Ee]rror\b:?", line)]
    return errors[0].strip() if errors else last_line(text, "it printed nothing")


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"

"""The installation from start to end: look in the cache, else fetch, edit and build; then test."""

import tempfile
from pathlib import Path

from fcmae.minkowski_install.child import InstallError, last_line, run_module
from fcmae.minkowski_install.edits import apply_edits, hash_of_edits
from fcmae.minkowski_install.machine import find_target, find_tools
from fcmae.minkowski_install.source import SHA256, fetch_source, hash_of_file, unpack
from fcmae.minkowski_install.wheel import (
    Say,
    build_wheel,
    cache_key,
    cached_wheel,
    fetch_packages,
    install_wheel,
    keep_wheel,
)


def install_minkowski(cache: Path, *, source: Path | None, device: str, say: Say) -> None:
    """Install MinkowskiEngine into the running Python and test it there.

    Args:
        cache: folder that keeps sources, logs and wheels; created.
        source: a source release to use instead of the package index's.
        device: cpu, cuda, or auto: cuda where a GPU is usable.
        say: called with each line of progress.

    Raises:
        MissingToolsError: something that the build needs is not installed.
        InstallError: a step failed.
    """
    target = find_target(device)
    say(f"MinkowskiEngine for {target}")
    key = cache_key(target, hash_of_file(source) if source else SHA256, hash_of_edits())
    wheel = cached_wheel(cache, key)
    if wheel is None:
        tools = find_tools(target)
        cache.mkdir(parents=True, exist_ok=True)
        archive = source or fetch_source(cache)
        log = cache / f"{key}.log"
        # On the disk of the cache: folders for temporary files may lie in memory.
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as folder:
            unpacked = unpack(archive, Path(folder))
            apply_edits(unpacked)
            if tools.packages:
                say(f"fetching {', '.join(tools.packages)} for the build alone")
                tools = fetch_packages(tools, Path(folder, "tools"))
            say(f"building with {tools.compiler}, about ten minutes of one core's time")
            wheel = keep_wheel(build_wheel(unpacked, target, tools, log, say), cache, key)
    else:
        say("the cache has the wheel")
    install_wheel(wheel)
    say(f"installed {wheel}")
    _test_installed(say)


def _test_installed(say: Say) -> None:
    """Run the self-test in a new process, which sees what was just installed."""
    done = run_module("self_test")
    for line in done.stdout.splitlines():
        say(f"self-test: {line}")
    if done.returncode:
        reason = last_line(done.stderr, "see the lines above")
        raise InstallError(
            f"MinkowskiEngine is installed but its self-test failed (exit status "
            f"{done.returncode}): {reason}. Use model.backend=native until it passes."
        )

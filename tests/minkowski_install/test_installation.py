"""The installer of MinkowskiEngine, without network, compiler or MinkowskiEngine."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import minkowski_stand_ins
import pytest
from minkowski_stand_ins import tarball, write_wheel

from fcmae.__main__ import main
from fcmae.minkowski_install import child, installation, source, wheel
from fcmae.minkowski_install.child import InstallError
from fcmae.minkowski_install.machine import Target, Tools

TARGET = Target("2.0.0+cpu", "cpython-310-linux-x86_64")


# source


def test_unpack_finds_the_folder_of_setup_py(tmp_path: Path) -> None:
    archive = tarball(tmp_path / "a.tar.gz", {"me-0.5.4/setup.py": "", "me-0.5.4/src/x.cpp": ""})
    assert source.unpack(archive, tmp_path / "out") == tmp_path / "out" / "me-0.5.4"


def test_what_is_no_source_release_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.tar.gz"
    text.write_text("not an archive", encoding="utf-8")
    with pytest.raises(InstallError, match="cannot be unpacked") as caught:
        source.unpack(text, tmp_path)
    assert "\n" not in str(caught.value)
    whole = tarball(tmp_path / "a.tar.gz", {f"me/{i}": f"{i * 7919 % 997}" for i in range(99)})
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(InstallError, match="cannot be unpacked"):
        source.unpack(cut, tmp_path)
    with pytest.raises(InstallError, match=r"holds no setup\.py"):
        source.unpack(whole, tmp_path)


def test_a_fetched_file_of_other_content_is_refused_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(module: str, name: str, version: str, path: str) -> subprocess.CompletedProcess[str]:
        Path(path).write_text("an error page", encoding="utf-8")
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(source, "run_module", send)
    with pytest.raises(InstallError, match=r"SHA-256 is .*--source FILE"):
        source.fetch_source(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_index_out_of_reach_is_said_with_pips_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nConnectionError: no route\n")
    monkeypatch.setattr(source, "run_module", lambda *_: failed)
    with pytest.raises(InstallError, match=r"index: ConnectionError: no route\. Fetch Minkowski"):
        source.fetch_source(tmp_path)


def test_sources_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def send(module: str, name: str, version: str, path: str) -> subprocess.CompletedProcess[str]:
        calls.append(name)
        Path(path).write_text("the release", encoding="utf-8")
        return subprocess.CompletedProcess([], 0, "", "")

    release = tmp_path / "release"
    release.write_text("the release", encoding="utf-8")
    monkeypatch.setattr(source, "SHA256", source.hash_of_file(release))
    monkeypatch.setattr(source, "run_module", send)
    first = source.fetch_source(tmp_path)
    assert source.fetch_source(tmp_path) == first
    assert calls == ["MinkowskiEngine"]


def test_fetching_through_pip_does_not_run_setup_py(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip")
    index = tmp_path / "index"
    index.mkdir()
    marker = tmp_path / "setup.py ran"
    files = {"tool-1.5/setup.py": f"open({str(marker)!r}, 'w')", "tool-1.5/PKG-INFO": ""}
    release = tarball(index / "tool-1.5.tar.gz", files)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    target = tmp_path / "out.tar.gz"
    done = child.run_module("pip_fetch", "tool", "1.5", str(target))
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == release.read_bytes()
    assert not marker.exists()
    done = child.run_module("pip_fetch", "tool", "1.6", str(target))
    assert done.returncode == 1
    assert child.last_line(done.stderr, "") == "the package index has no source release of tool 1.6"


# wheel


def test_every_part_of_the_target_the_sources_and_the_edits_are_in_the_cache_key() -> None:
    keys = {wheel.cache_key(TARGET, "source", "edits")}
    for other in ({"torch": "2.1.0+cpu"}, {"python": "cpython-311"}, {"cuda": "CUDA 13.0 for 8.0"}):
        keys.add(wheel.cache_key(replace(TARGET, **other), "source", "edits"))
    keys.add(wheel.cache_key(TARGET, "other source", "edits"))
    keys.add(wheel.cache_key(TARGET, "source", "other edits"))
    assert len(keys) == 6
    assert wheel.cache_key(replace(TARGET), "source", "edits") in keys


def test_a_kept_wheel_is_found_under_its_key_only(tmp_path: Path) -> None:
    built = write_wheel(tmp_path / "dist" / "me-0.5.4-py3-none-any.whl")
    cache = tmp_path / "cache"
    cache.mkdir()
    assert wheel.cached_wheel(cache, "key") is None
    kept = wheel.keep_wheel(built, cache, "key")
    assert wheel.cached_wheel(cache, "key") == kept
    assert kept.read_bytes() == built.read_bytes()
    assert wheel.cached_wheel(cache, "other") is None
    assert [path.name for path in kept.parent.iterdir()] == [built.name]


def test_a_truncated_wheel_in_the_cache_is_not_used(tmp_path: Path) -> None:
    kept = write_wheel(tmp_path / "key" / "me.whl")
    kept.write_bytes(kept.read_bytes()[:-30])
    assert wheel.cached_wheel(tmp_path, "key") is None


def test_packages_for_the_build_go_to_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    results = [subprocess.CompletedProcess([], 0, "", "")]
    results.append(subprocess.CompletedProcess([], 1, "", "ERROR: no index\n"))

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return results[len(commands) - 1]

    monkeypatch.setattr(wheel.subprocess, "run", run)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    lacking = Tools("g++", environment={"PATH": "/bin"}, packages=("ninja",))
    tools = wheel.fetch_packages(lacking, tmp_path)
    assert commands[0][-3:] == ["--target", str(tmp_path), "ninja"]
    assert tools.environment == {"PATH": f"{tmp_path}/bin:/bin", "PYTHONPATH": str(tmp_path)}
    assert tools.packages == ()
    with pytest.raises(InstallError, match="could not fetch ninja for the build: ERROR: no index"):
        wheel.fetch_packages(lacking, tmp_path)


SETUP = """
import os, pathlib, sys
print(sys.argv[1:])
print("[1/2] c++ a.cpp")
print("[2/2] c++ b.cpp")
print(os.environ["CXX"], os.environ["LDFLAGS"])
pathlib.Path("dist").mkdir()
pathlib.Path("dist/me.whl").touch()
"""


def build(tmp_path: Path, setup: str, target: Target = TARGET) -> tuple[Path, str, list[str]]:
    """Run a stand-in setup.py through build_wheel: the wheel, the log and what was said."""
    (tmp_path / "setup.py").write_text(setup, encoding="utf-8")
    tools = Tools("/bin/g++", Path("/conda/include"), Path("/conda/lib"), {"CXX": "/bin/g++"})
    said: list[str] = []
    log = tmp_path / "build.log"
    built = wheel.build_wheel(tmp_path, target, tools, log, said.append)
    return built, log.read_text(encoding="utf-8"), said


def test_build_says_its_progress_and_passes_compiler_and_folders_on(tmp_path: Path) -> None:
    built, log, said = build(tmp_path, SETUP)
    assert built == tmp_path / "dist" / "me.whl"
    assert [line.split(" after ")[0] for line in said[:2]] == ["  file 1/2", "  file 2/2"]
    assert said[2].endswith(f"the log is {tmp_path / 'build.log'}")
    assert "'--cpu_only', '--blas_include_dirs=/conda/include'" in log
    assert "/bin/g++ -L/conda/lib -Wl,-rpath,/conda/lib" in log


def test_build_for_cuda_forces_it(tmp_path: Path) -> None:
    log = build(tmp_path, SETUP, replace(TARGET, cuda="CUDA 13.0 for 8.0"))[1]
    assert "--force_cuda" in log
    assert "--cpu_only" not in log


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('x.cpp:3: error: no cblas'); raise SystemExit(1)", "x.cpp:3: error: no cblas"),
        ("print('g++: fatal error: Killed signal'); raise SystemExit(1)", "MAX_JOBS=1"),
        ("print('IndexError: list'); raise SystemExit(3)", "(exit status 3): IndexError: list"),
        ("raise SystemExit(3)", "it printed nothing"),
        ("", "exit status 0"),
    ],
)
def test_a_failed_build_names_the_error_and_the_log(tmp_path: Path, body: str, reason: str) -> None:
    with pytest.raises(InstallError) as caught:
        build(tmp_path, body)
    assert reason in str(caught.value)
    assert f"the whole log is {tmp_path / 'build.log'}" in str(caught.value)


def test_a_wheel_that_pip_refuses_is_an_error_with_pips_reason(tmp_path: Path) -> None:
    pytest.importorskip("pip")
    broken = tmp_path / "me-0.5.4-py3-none-any.whl"
    broken.write_text("no zip", encoding="utf-8")
    with pytest.raises(InstallError, match=r"pip could not install .*me-0.5.4.*: \w+"):
        wheel.install_wheel(broken)


# installation


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace what needs network, compiler and pip by stand-ins, and record their order."""
    return minkowski_stand_ins.use(monkeypatch)


def test_the_second_installation_takes_the_wheel_from_the_cache(
    tmp_path: Path, steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["install-minkowski", "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    assert main(command) == 0
    assert steps == ["fetch", "edit", "build", "install me-0.5.4.whl", "self_test"]
    steps.clear()
    assert main(command) == 0
    assert steps == ["install me-0.5.4.whl", "self_test"]
    out = capsys.readouterr().out
    assert "the cache has the wheel" in out
    assert out.count("self-test: 7x7: passed") == 2
    assert not list((tmp_path / "cache").glob("build-*"))


def test_a_given_source_is_built_instead_of_a_fetched_one(tmp_path: Path, steps: list[str]) -> None:
    given = tarball(tmp_path / "mine.tar.gz", {"me/setup.py": ""})
    cache = str(tmp_path / "cache")
    assert main(["install-minkowski", "--cache", cache, "--source", str(given)]) == 0
    assert "fetch" not in steps
    assert "build" in steps


def test_fcmae_cache_moves_the_cache(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCMAE_CACHE", str(tmp_path / "elsewhere"))
    assert main(["install-minkowski", "--device", "cpu"]) == 0
    assert len(list((tmp_path / "elsewhere" / "minkowski").glob("*/me-0.5.4.whl"))) == 1


def test_a_failed_self_test_is_exit_status_1(
    tmp_path: Path,
    steps: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = subprocess.CompletedProcess([], 1, "7x7 depthwise: FAILED\n", "")
    monkeypatch.setattr(installation, "run_module", lambda _: failed)
    assert main(["install-minkowski", "--cache", str(tmp_path), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "self-test: 7x7 depthwise: FAILED" in captured.out
    assert "fcmae: error: MinkowskiEngine is installed but its self-test failed" in captured.err


@pytest.mark.parametrize(
    ("option", "message"),
    [("--source", "--source: .* is no file"), ("--cache", "--cache: .* cannot be used")],
)
def test_paths_that_cannot_be_used_are_exit_status_2(
    tmp_path: Path,
    steps: list[str],
    capsys: pytest.CaptureFixture[str],
    option: str,
    message: str,
) -> None:
    (tmp_path / "file").touch()
    command = ["install-minkowski", "--device", "cpu", "--cache", str(tmp_path)]
    assert main([*command, option, str(tmp_path / "file" / "below")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)

"""The source release of MinkowskiEngine: fetched once, checked, unpacked."""

import hashlib
import os
import tarfile
import zlib
from pathlib import Path

from fcmae.minkowski_install.child import InstallError, last_line, run_module

VERSION = "0.5.4"
# Of MinkowskiEngine-0.5.4.tar.gz, the last release, of May 2021.
SHA256 = "b1879c00d0b0b1d30ba622cce239886a7e3c78ee9da1064cdfe2f64c2ab15f94"


def hash_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch_source(folder: Path) -> Path:
    """Return the source release in `folder`, from there or from the package index.

    Raises:
        InstallError: the index cannot be reached, or what it sent is not the release.
    """
    path = folder / f"MinkowskiEngine-{VERSION}.tar.gz"
    if path.is_file() and hash_of_file(path) == SHA256:
        return path
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        done = run_module("pip_fetch", "MinkowskiEngine", VERSION, str(partial))
        got = hash_of_file(partial) if partial.is_file() else ""
        if done.returncode or got != SHA256:
            reason = f"the file's SHA-256 is {got}, expected {SHA256}"
            if done.returncode:
                reason = last_line(done.stderr, "pip said nothing")
            raise InstallError(
                f"could not fetch the sources of MinkowskiEngine {VERSION} from the package "
                f"index: {reason}. Fetch {path.name} on another machine and give it with "
                "--source FILE."
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a source archive into `folder` and return the folder of its setup.py.

    Raises:
        InstallError: not a tar archive, or one without setup.py.
    """
    try:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):  # absent from early patch releases
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(folder)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = str(error).partition("\n")[0].rstrip(":")  # tarfile lists all formats tried
        raise InstallError(
            f"{archive}: cannot be unpacked ({reason}); expected the source release "
            f"MinkowskiEngine-{VERSION}.tar.gz."
        ) from error
    found = sorted(folder.glob("*/setup.py"))
    if not found:
        raise InstallError(
            f"{archive}: holds no setup.py in its first folder; expected the source release "
            f"MinkowskiEngine-{VERSION}.tar.gz."
        )
    return found[0].parent

"""`fcmae install-minkowski`: build MinkowskiEngine 0.5.4 for this Python, install and test it."""

import argparse
import os
import sys
from pathlib import Path

SUMMARY = "build and install MinkowskiEngine, for model.backend=minkowski"


def run(arguments: list[str]) -> int:
    """Install MinkowskiEngine; exit status 1 when a step fails, 2 when tools are missing."""
    from fcmae.errors import BackendUnavailableError, ConfigError
    from fcmae.minkowski_install.child import InstallError, MissingToolsError
    from fcmae.minkowski_install.installation import install_minkowski

    settings = _parser().parse_args(arguments)
    if settings.source and not settings.source.is_file():
        raise ConfigError(
            f"--source: {settings.source} is no file; expected the source release "
            "MinkowskiEngine-0.5.4.tar.gz, or leave --source out to fetch it."
        )
    cache = settings.cache.expanduser()
    try:
        install_minkowski(cache, source=settings.source, device=settings.device, say=_say)
    except MissingToolsError as error:
        raise BackendUnavailableError(str(error)) from error
    except InstallError as error:
        print(f"fcmae: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        raise ConfigError(
            f"--cache: {cache} cannot be used ({error}); give a folder that can be written."
        ) from error
    return 0


def _parser() -> argparse.ArgumentParser:
    default = Path(os.environ.get("FCMAE_CACHE") or "~/.cache/fcmae") / "minkowski"
    parser = argparse.ArgumentParser(
        prog="fcmae install-minkowski",
        description="Build MinkowskiEngine 0.5.4 for this Python and torch, install it into this "
        "Python and compare it with dense convolution. The wheel is kept: the next time takes "
        "seconds. MAX_JOBS limits the number of compilers at a time.",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=default,
        metavar="DIR",
        help="folder of wheels, sources and logs (default: $FCMAE_CACHE/minkowski, or "
        "~/.cache/fcmae/minkowski)",
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="FILE",
        help="MinkowskiEngine-0.5.4.tar.gz to build, instead of fetching it",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="what to build for: cuda where a GPU is usable (auto), or as said",
    )
    return parser


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

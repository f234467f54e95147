"""What the wheel is built for, and whether this machine has the tools to build it."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from fcmae.minkowski_install.child import MissingToolsError


@dataclass(frozen=True)
class Target:
    """What a wheel depends on besides its sources.

    Attributes:
        torch: version of torch, with its local part.
        python: implementation, version and platform of the running Python.
        cuda: version of CUDA and compute capabilities, or empty for a build without CUDA.
    """

    torch: str
    python: str
    cuda: str = ""

    def __str__(self) -> str:
        return f"torch {self.torch}, {self.python}, {self.cuda or 'CPU only'}"


@dataclass(frozen=True)
class Tools:
    """What builds the wheel.

    Attributes:
        compiler: path of the C++ compiler.
        include: folder of cblas.h, or None where the compiler looks by itself.
        library: folder of libopenblas, or None where the linker looks by itself.
        environment: variables to set.
        packages: Python packages that this Python lacks, to be fetched for the build alone.
    """

    compiler: str
    include: Path | None = None
    library: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Missing:
    """A tool that is not there, and the packages that bring it."""

    what: str
    debian: str
    conda: str


COMPILER = Missing("a C++ compiler", "g++", "gxx")
PYTHON_HEADERS = Missing("the headers of Python (Python.h)", "python3-dev", "python")
BLAS = Missing("the headers and library of OpenBLAS (cblas.h)", "libopenblas-dev", "openblas")
NVCC = Missing("the CUDA compiler (nvcc)", "nvidia-cuda-toolkit", "cuda-nvcc cuda-libraries-dev")
PIP = Missing("pip", "python3-pip", "pip")


def find_target(device: str) -> Target:
    """Describe what to build for: `device` is cpu, cuda, or auto for cuda where a GPU is usable.

    Raises:
        MissingToolsError: torch is not installed, or `device` is cuda and torch has no CUDA or
            nothing says for which GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingToolsError(
            f"torch is not installed in {sys.executable} ({error}); MinkowskiEngine is built "
            "against it. Install it first: pip install torch."
        ) from error
    tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    is_usable = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not is_usable):
        return Target(torch.__version__, tag)
    if torch.version.cuda is None:
        raise MissingToolsError(
            f"--device cuda: the installed torch {torch.__version__} was built without CUDA. "
            "Install a torch with CUDA, or use --device cpu."
        )
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    listed = ";".join(f"{major}.{minor}" for major, minor in sorted(capabilities))
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or listed
    if not wanted:
        raise MissingToolsError(
            "--device cuda: torch sees no GPU here, so it has to be said which one to build for: "
            "set TORCH_CUDA_ARCH_LIST to its compute capability, such as 8.0, or use --device cpu."
        )
    return Target(torch.__version__, tag, f"CUDA {torch.version.cuda} for {wanted}")


def find_tools(target: Target) -> Tools:
    """Find everything that the build needs.

    Raises:
        MissingToolsError: something is missing; all of it is listed, with packages.
    """
    if sys.platform == "win32":
        raise MissingToolsError(
            "MinkowskiEngine cannot be built on Windows. Use WSL, or model.backend=native, which "
            "computes the same numbers."
        )
    # Programs of this Python's environment come first, activated or not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    asked = os.environ.get("CXX")
    names = [asked] if asked else ["g++", "c++", "clang++"]
    compiler = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
    missing = [] if importlib.util.find_spec("pip") else [PIP]
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append(PYTHON_HEADERS)
    if target.cuda and find_cuda_home(path) is None:
        missing.append(NVCC)
    blas = None if compiler is None else find_blas(compiler)
    if compiler is None:
        missing.append(COMPILER)
    if blas is None and (compiler or not _blas_header()):
        missing.append(BLAS)
    if missing or compiler is None or blas is None:
        raise MissingToolsError(_describe(missing))
    return Tools(compiler, *blas, {"PATH": path, "CXX": compiler}, missing_packages(path))


def missing_packages(path: str) -> tuple[str, ...]:
    """Name the Python packages of the build that this Python, with programs on `path`, lacks."""
    packages = () if shutil.which("ninja", path=path) else ("ninja",)
    try:
        version = importlib.metadata.version("setuptools").split(".")
    except importlib.metadata.PackageNotFoundError:
        return ("setuptools>=70.1", *packages)
    makes_wheels = (int(version[0]), int(version[1])) >= (70, 1)  # without the package wheel
    return packages if makes_wheels or importlib.util.find_spec("wheel") else ("wheel", *packages)


def find_cuda_home(path: str) -> Path | None:
    """Return the folder of the CUDA toolkit that torch will build with, if there is one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=path)
    if home is None:
        home = str(Path(nvcc).parents[1]) if nvcc else "/usr/local/cuda"
    return Path(home) if Path(home, "bin", "nvcc").is_file() else None


def find_blas(compiler: str) -> tuple[Path | None, Path | None] | None:
    """Return folders of cblas.h and libopenblas with which a program links, None for defaults."""
    program = "#include <cblas.h>\nint main() { return cblas_sgemm == nullptr; }\n"
    for include, library in [(None, None), *_blas_folders()]:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(program, encoding="utf-8")
            command = [compiler, str(source), "-o", str(Path(folder, "probe"))]
            command += [f"-I{include}"] if include else []
            command += [f"-L{library}"] if library else []
            command += ["-lopenblas"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return include, library
    return None


def _blas_folders() -> list[tuple[Path, Path]]:
    """Places where conda, Fedora and a build by hand leave OpenBLAS."""
    prefixes = [os.environ.get("CONDA_PREFIX", sys.prefix), sys.base_prefix, "/usr/local"]
    folders = [(Path(p, "include"), Path(p, "lib")) for p in [*prefixes, "/opt/OpenBLAS"]]
    folders.append((Path("/usr/include/openblas"), Path("/usr/lib64")))
    return [pair for pair in folders if Path(pair[0], "cblas.h").is_file()]


def _blas_header() -> bool:
    """Whether cblas.h lies somewhere, when no compiler can be asked."""
    usual = [Path("/usr/include"), *Path("/usr/include").glob("*-linux-gnu")]
    return bool(_blas_folders()) or any(Path(folder, "cblas.h").is_file() for folder in usual)


def _describe(missing: list[Missing]) -> str:
    listed = ", ".join(f"{m.what} (Debian: {m.debian}; conda: {m.conda})" for m in missing)
    return (
        f"MinkowskiEngine cannot be built here, missing: {listed}. Install with `apt-get install "
        f"{' '.join(m.debian for m in missing)}` or `conda install -c conda-forge "
        f"{' '.join(m.conda for m in missing)}` and run the command again, or use "
        "model.backend=native, which needs none of it."
    )

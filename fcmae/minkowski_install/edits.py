"""The edits that today's Python, torch and CUDA ask of the MinkowskiEngine 0.5.4 sources.

Each is as small as it can be and says why; none of the sources' text is kept beyond its anchor.
"""

import hashlib
from dataclasses import astuple, dataclass
from pathlib import Path

from fcmae.minkowski_install.child import InstallError


@dataclass(frozen=True)
class Edit:
    """Replace `old`, which must stand exactly once in `file`, by `new`."""

    file: str
    old: str
    new: str
    reason: str


_PYTHON_310 = "collections.Sequence moved to collections.abc; the old name ended with Python 3.9"
_THRUST = "since CUDA 12 the headers of thrust no longer include each other; name what is used"
_NVTX = "the bundled NVTX headers clash with CUDA's own since 12.3; one profiling mark is lost"


def _include_before(file: str, anchor: str, headers: list[str], reason: str) -> Edit:
    lines = [f"#include <{header}>" for header in headers]
    return Edit(file, anchor, "\n".join([*lines, anchor]), reason)


EDITS = (
    Edit(
        "setup.py",
        'run_command("pip", "uninstall", "MinkowskiEngine", "-y")\n',
        "",
        "building must not remove an installed copy, of whatever Python `pip` belongs to",
    ),
    *(
        Edit(
            f"MinkowskiEngine/{file}",
            "from collections import Sequence\n",
            "from collections.abc import Sequence\n",
            _PYTHON_310,
        )
        for file in (
            "MinkowskiCommon.py",
            "MinkowskiCoordinateManager.py",
            "MinkowskiTensorField.py",
            "utils/quantization.py",
        )
    ),
    Edit(
        "MinkowskiEngine/MinkowskiKernelGenerator.py",
        "from collections import Sequence, namedtuple\n",
        "from collections import namedtuple\nfrom collections.abc import Sequence\n",
        _PYTHON_310,
    ),
    Edit(
        "MinkowskiEngine/MinkowskiConvolution.py",
        "            MinkowskiConvolutionTransposeFunction()\n"
        "            if is_transpose\n"
        "            else MinkowskiConvolutionFunction()\n",
        "            MinkowskiConvolutionTransposeFunction\n"
        "            if is_transpose\n"
        "            else MinkowskiConvolutionFunction\n",
        "torch warns that it will refuse instances of autograd functions; the class is enough",
    ),
    _include_before(
        "src/convolution_kernel.cuh", '#include "gpu.cuh"', ["thrust/execution_policy.h"], _THRUST
    ),
    _include_before(
        "src/coordinate_map_gpu.cu",
        "#include <thrust/sort.h>",
        ["thrust/remove.h", "thrust/unique.h"],
        _THRUST,
    ),
    _include_before(
        "src/spmm.cu",
        "#include <cusparse.h>",
        ["thrust/execution_policy.h", "thrust/reduce.h", "thrust/sort.h"],
        _THRUST,
    ),
    _include_before(
        "src/spmm.cu",
        "#include <ATen/cuda/CUDAContext.h>",
        ["ATen/core/Tensor.h"],
        "since torch 2.3 the CUDA headers use at::Tensor without defining it",
    ),
    Edit(
        "src/coordinate_map_functors.cuh",
        "struct find_coordinate\n"
        "    : public thrust::unary_function<uint32_t,\n"
        "                                    thrust::pair<uint32_t, uint32_t>> {\n",
        "struct find_coordinate {\n",
        "CUDA 13 removed thrust::unary_function; nothing uses the names it declared",
    ),
    _include_before(
        "src/3rdparty/concurrent_unordered_map.cuh",
        "#include <thrust/count.h>",
        ["thrust/execution_policy.h"],
        _THRUST,
    ),
    Edit(
        "src/3rdparty/concurrent_unordered_map.cuh",
        "#include <cudf/detail/nvtx/ranges.hpp>\n",
        "",
        _NVTX,
    ),
    Edit("src/3rdparty/concurrent_unordered_map.cuh", "    CUDF_FUNC_RANGE();\n", "", _NVTX),
    Edit(
        "src/3rdparty/concurrent_unordered_map.cuh",
        "    return std::unique_ptr<Self, std::function<void(Self*)>>{\n",
        "    return std::shared_ptr<Self>{\n",
        "since CUDA 12.4 gcc finds std::__to_address twice when the caller makes one of the other",
    ),
    Edit(
        "src/3rdparty/concurrent_unordered_map.cuh",
        "        int dev_id = 0;\n"
        "        CUDA_TRY(cudaGetDevice(&dev_id));\n"
        "        CUDA_TRY(\n"
        "          cudaMemPrefetchAsync(m_hashtbl_values, m_capacity * sizeof(value_type), "
        "dev_id, stream));\n",
        "",
        "CUDA 13 changed cudaMemPrefetchAsync; the table is never in managed memory",
    ),
)


def apply_edits(source: Path, edits: tuple[Edit, ...] = EDITS) -> None:
    """Apply `edits` to the unpacked sources, in place.

    Raises:
        InstallError: an anchor does not stand exactly once in its file.
    """
    for edit in edits:
        path = source / edit.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = text.count(edit.old)
        if found != 1:
            raise InstallError(
                f"{edit.file}: {edit.old.strip()!r} stands there {found} times, expected once; "
                "these are not the sources of MinkowskiEngine 0.5.4 as released. Leave out "
                "--source to fetch them."
            )
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def hash_of_edits(edits: tuple[Edit, ...] = EDITS) -> str:
    """Return a hash that changes when what is edited does; reasons do not count."""
    changes = [astuple(edit)[:3] for edit in edits]
    return hashlib.sha256(repr(changes).encode()).hexdigest()

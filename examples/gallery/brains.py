"""Cuts pictures of sections from two brains that Debian's mricron-data brings, with their lobes.

human:    8 bit, one section each, of one person's T1-weighted MRI (Colin 27, 1 mm; BSD-3 as
          packaged), with lobes by the AAL atlas.
macaque:  16 bit, five neighbouring sections as channels, of the INIA19 average of 19 rhesus
          macaques (T1-weighted MRI, 0.5 mm; CC BY, Rohlfing et al. 2012), with lobes by NeuroMaps.

Names begin with the slab of the section: pictures of one slab overlap, and `data.group` keeps them
on one side of a split.
"""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FOLDER = "usr/share/mricron/templates"
SIDE_PX = 64
SECTIONS_BETWEEN = 2  # pictures
SLAB_SECTIONS = 10
PER_LOBE = 4  # pictures in one section
CHANNELS = 5
STEPS_PER_UNIT = 256  # of the macaque's intensities, so that 130 (white, by its header) is 33,280
# Codes of regions in AAL, by their thousands.
AAL_LOBES = {
    2: "frontal",
    5: "occipital",
    6: "parietal",
    7: "deep",
    8: "temporal",
    9: "cerebellum",
}
NEUROMAPS_LOBES = {
    "frontal": r"(superior|middle|inferior)_frontal_gyrus|precentral_gyrus|frontal_white_matter"
    r"|(medial|lateral)_orbital_gyrus|straight_gyrus|fronto-orbital_gyrus.*",
    "parietal": r"angular_gyrus|precuneus|superior_parietal_lobule|supramarginal_gyrus"
    r"|postcentral_gyrus",
    "temporal": r"(superior|middle|inferior)_temporal_gyrus|temporal_white_matter|fusiform_gyrus",
    "occipital": r"(inferior_)?occipital_gyrus.*|occipital_white_matter|lingual_gyrus|cuneus",
    "cerebellum": r"lobule_.*|cerebellar_white_matter|declive|uvula|.*_lobule_of.*|paraflocculus"
    r"|(simple|gracile|biventer)_lobule|.*_(semilunar|quadrangular)_lobule",
    "deep": r"caudate_nucleus|putamen|.*_globus_pallidus|.*pulvinar_nucleus|medial_dorsal_nucleus.*"
    r"|ventral_.*_nucleus.*|internal_capsule",
}
NUMPY_TYPES = {2: "u1", 4: "<i2", 16: "<f4"}  # codes of NIfTI-1


def volume(path: Path) -> tuple[np.ndarray, str]:
    """Return [X, Y, Z] of a NIfTI-1 file, and what its header's extension says."""
    data = gzip.decompress(path.read_bytes())
    shape = struct.unpack_from("<4h", data, 40)[1:]
    (kind,) = struct.unpack_from("<h", data, 70)
    (begin,) = struct.unpack_from("<f", data, 108)
    count = int(np.prod(shape))
    values = np.frombuffer(data, NUMPY_TYPES[kind], count, int(begin)).reshape(shape, order="F")
    return values, data[352 : int(begin)].decode("latin1")


def aal(root: Path) -> np.ndarray:
    """Return the lobe of every voxel of the human brain, "" where it has none: [X, Y, Z]."""
    codes, _ = volume(root / FOLDER / "aal.nii.gz")
    lobes = np.full(256, "", dtype="<U10")
    for line in (root / FOLDER / "aal.nii.txt").read_text(encoding="utf-8").splitlines():
        if words := line.split():
            lobes[int(words[0])] = AAL_LOBES.get(int(words[2]) // 1000, "")
    return lobes[codes]


def neuromaps(root: Path) -> np.ndarray:
    """Return the lobe of every voxel of the macaque's brain, "" where it has none: [X, Y, Z]."""
    codes, said = volume(root / FOLDER / "inia19-NeuroMaps.nii.gz")
    lobes = np.full(int(codes.max()) + 1, "", dtype="<U10")
    for number, name in re.findall(r"^(\d+)\s+[lr]_(\S+)", said.replace("\0", ""), re.M):
        for lobe, names in NEUROMAPS_LOBES.items():
            if re.fullmatch(names, name) and int(number) < len(lobes):
                lobes[int(number)] = lobe
    return lobes[codes]


def sections(
    values: np.ndarray, lobes: np.ndarray, channels: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (lobe, name, pixels [64, 64, channels]) around voxels of every lobe, seed 0."""
    rng = np.random.default_rng(0)
    width, length, height = values.shape
    reach, half = channels // 2, SIDE_PX // 2
    for place in range(reach, length - reach, SECTIONS_BETWEEN):
        for lobe in sorted(set(np.unique(lobes[:, place])) - {""}):
            found = np.argwhere(lobes[:, place] == lobe)
            for number, (x, z) in enumerate(rng.permutation(found)[:PER_LOBE]):
                left = int(np.clip(x - half, 0, width - SIDE_PX))
                low = int(np.clip(z - half, 0, height - SIDE_PX))
                block = values[
                    left : left + SIDE_PX, place - reach : place + reach + 1, low : low + SIDE_PX
                ]
                pixels = np.ascontiguousarray(block.transpose(2, 0, 1)[::-1])
                yield lobe, f"slab{place // SLAB_SECTIONS:02d}-{place:03d}-{number}", pixels


def human(root: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (lobe, name, uint8 [64, 64]) of coronal sections of the human brain."""
    values, _ = volume(root / FOLDER / "ch2.nii.gz")
    for lobe, name, pixels in sections(values, aal(root), 1):
        yield lobe, name, pixels[..., 0]


def macaque(root: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (lobe, name, uint16 [64, 64, 5]) of coronal sections of the macaque's brain."""
    values, _ = volume(root / FOLDER / "inia19-t1-brain.nii.gz")
    deep = np.clip(values * STEPS_PER_UNIT, 0, 65535).round().astype(np.uint16)
    yield from sections(deep, neuromaps(root), CHANNELS)

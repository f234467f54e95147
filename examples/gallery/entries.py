"""What the gallery shows: images that packages bring or a seed makes, and the runs on them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import brains
import numpy as np
from PIL import Image

RECIPES = Path(__file__).resolve().parents[2] / "studies" / "recipes"

Pictures = Iterable[tuple[str, str, "np.ndarray | Image.Image"]]  # class, name, pixels
SIDE_PX = 128  # of a photograph's shorter side, as it is written
COMMON = {
    "data.image_size": "96",
    "data.workers": "0",
    "model.name": "convnextv2_atto",
    "train.batch_size": "32",
    "train.steps": "300",
    "evaluate.draws": "10",
    "log.tensorboard": "false",
}


def study() -> ModuleType:
    """Return studies/recipes/datasets.py, whose name is also that of a library."""
    spec = importlib.util.spec_from_file_location("recipe_datasets", RECIPES / "datasets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


datasets = study()


@dataclass(frozen=True)
class Entry:
    """One run of the gallery.

    Attributes:
        name: of its folders.
        title: of its part of the page.
        images: what they are, in a sentence that their number begins.
        classes: what the probe asks; pretraining sees no label.
        licence: whose pictures they are.
        settings: of `fcmae pretrain`, beside COMMON.
        make: writes the images: (class, name, pixels), from where packages lie unpacked; None where
            `data.path` is a name that the tool knows.
        debian: the package that brings them, or "".
        show: black and white of a picture's values, where the page shows it.
        credit: names who took pictures, by the package's folder and the files; None: the licence
            says it.
    """

    name: str
    title: str
    images: str
    classes: str
    licence: str
    settings: Mapping[str, str]
    make: Callable[[Path], Pictures] | None = None
    debian: str = ""
    show: tuple[float, float] = (0, 255)
    credit: Callable[[Path, Sequence[str]], str] | None = None

    def credits_of(self, files: Sequence[str], packages: Path) -> str:
        """Return who took the pictures of files, "" where the licence says it."""
        return "" if self.credit is None else self.credit(packages / self.debian, files)

    @property
    def words(self) -> dict[str, str]:
        """Every setting of the run, by name."""
        path = "elpv" if self.make is None else f"data/{self.name}"
        own = {"run.dir": f"runs/{self.name}", "data.path": path}
        return own | COMMON | dict(self.settings)


def smaller(pictures: Pictures) -> Pictures:
    """Yield photographs whose shorter side is SIDE_PX at most."""
    for label, name, picture in pictures:
        assert isinstance(picture, Image.Image)
        yield label, name, datasets.reduced(picture, SIDE_PX)


def photographers(root: Path, files: Sequence[str]) -> str:
    """Return who took nebulae, as Stellarium's list of its pictures names them."""
    listed = root / "usr/share/stellarium/nebulae/default/textures.json"
    found = re.findall(
        r'"imageCredits"\s*:\s*\{\s*"short"\s*:\s*"([^"]*)".*?"imageUrl"\s*:\s*"([^"]*)"',
        listed.read_text(encoding="utf-8"),
        re.S | re.I,
    )
    credit = {Path(name).stem: " ".join(who.split()) for who, name in found}
    names = {credit.get(Path(file).stem, "") for file in files} - {""}
    return "; ".join(sorted(names))


ENTRIES = [
    Entry(
        "cells",
        "Solar cells: grey photographs",
        "electroluminescence photographs of solar cells, 300 px, grey, of the package "
        "elpv-dataset.",
        "mono- or polycrystalline",
        "elpv-dataset (Buerhop-Lutz et al. 2018, Deitsch et al. 2019), CC BY-NC-SA 4.0.",
        {
            "data.label": "type",
            "data.in_chans": "1",
            "train.steps": "200",
            "evaluate.max_images": "1000",
        },
    ),
    Entry(
        "nebulae",
        "Nebulae: colour photographs",
        "colour photographs of the sky, of Debian's stellarium-data, of at most 128 px.",
        "galaxy, open cluster, globular cluster, planetary nebula, nebula",
        "as Debian's stellarium-data, GPL-2+, some CC BY 3.0 or by permission with credit; what is "
        "shown here keeps that licence.",
        {},
        lambda root: smaller(datasets.nebulae(root)),
        debian="stellarium-data",
        credit=photographers,
    ),
    Entry(
        "macaque",
        "Sections of a macaque's brain: five channels of 16 bit",
        "pictures of coronal sections, T1-weighted MRI, 64 px of 0.5 mm, 16 bit, of Debian's "
        "mricron-data: five neighbouring sections are the channels (the page shows the first three "
        "as red, green and blue).",
        "the lobe in the middle: frontal, parietal, temporal, occipital, cerebellum, deep",
        "INIA19 (Rohlfing et al. 2012), CC BY.",
        {
            "data.in_chans": "5",
            "data.value_range": "[0, 33280]",
            "data.group": "(slab[0-9]+)",
        },
        brains.macaque,
        debian="mricron-data",
        show=(0, 33280),
    ),
    Entry(
        "human",
        "Sections of a human brain: grey slices",
        "pictures of coronal sections, T1-weighted MRI of one person, 64 px of 1 mm, 8 bit, of "
        "Debian's mricron-data.",
        "the lobe in the middle: frontal, parietal, temporal, occipital, cerebellum, deep",
        "Colin 27 (Holmes et al. 1998) and AAL, as Debian's mricron-data (BSD-3-Clause).",
        {"data.in_chans": "1", "data.group": "(slab[0-9]+)", "train.steps": "200"},
        brains.human,
        debian="mricron-data",
        show=(0, 190),
    ),
    Entry(
        "textures",
        "Textures: made pictures of five channels",
        "made pictures, seed 0: waves in noise, five channels of 12 bit in 16, a random "
        "phase in each (the page shows the first three as red, green and blue).",
        "the angle of the waves, 0, 60 or 120 degrees, and how many there are, 6 or 9",
        "made by studies/recipes/datasets.py, MIT as the toolkit.",
        {"data.in_chans": "5", "data.value_range": "[0, 4095]", "train.steps": "200"},
        lambda root: datasets.textures(),
        show=(0, 4095),
    ),
    Entry(
        "digits",
        "Digits: small and easy",
        "grey pictures of handwritten digits, 8 px, enlarged to 32, of the package scikit-learn.",
        "0 to 9",
        "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), CC BY 4.0.",
        {"data.in_chans": "1"},
        lambda root: datasets.digits(),
    ),
]


def unpack(package: str, packages: Path) -> Path:
    """Return where a Debian package lies unpacked, after fetching it if need be.

    Args:
        package: its name.
        packages: folder of folders named as packages.
    """
    folder = packages / package
    if not folder.is_dir():
        packages.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=packages, check=True)
        (file,) = packages.glob(f"{package}_*.deb")
        partial = packages / f"{package}.partial"
        subprocess.run(["dpkg-deb", "-x", file, partial], check=True)
        partial.rename(folder)
    return folder


def write_images(entry: Entry, work: Path, packages: Path) -> None:
    """Write the images of an entry into class folders of work/data, unless they are there."""
    folder = work / "data" / entry.name
    if entry.make is None or folder.is_dir():
        return
    root = unpack(entry.debian, packages) if entry.debian else packages
    partial = folder.with_name(f"{entry.name}.partial")
    for label, name, picture in entry.make(root):
        place = partial / label
        place.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, Image.Image):
            picture.save(place / f"{name}.png")
        elif picture.ndim == 2:
            Image.fromarray(picture).save(place / f"{name}.png")
        else:
            np.save(place / f"{name}.npy", picture)
    partial.rename(folder)

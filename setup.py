"""Installs the packages `fcmae` and `sparse` and the console command `fcmae`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "fcmae/__init__.py").read_text("utf-8"))

RECIPES = sorted({file.parent for file in (ROOT / "configs").glob("**/*.yaml")})

EXTRAS = {
    # 2,624 photographs of solar cells, CC BY-NC-SA 4.0, 91 MB
    "quickstart": ["elpv-dataset>=1.0"],
    # DICOM with the decoders of its compressed transfer syntaxes
    "dicom": [
        "pydicom>=3.0.1",
        "pylibjpeg>=2.0",
        "pylibjpeg-libjpeg>=2.2",
        "pylibjpeg-openjpeg>=2.3",
        "pylibjpeg-rle>=2.0",
    ],
    "arrays": ["h5py>=3.11", "zarr>=3.0.8"],
    # exports for transformers, and images of data sets that `datasets` saved on disk
    "huggingface": ["transformers>=5.0", "datasets>=3.6"],
    # fcmae finetune with task: segmentation: its decoders
    "segmentation": ["segmentation-models-pytorch>=0.5"],
    # boxes scored by examples/detection.py
    "detection": ["torchmetrics>=1.4", "pycocotools>=2.0.8"],
    "onnx": ["onnx>=1.17", "onnxruntime>=1.19", "onnxscript>=0.7"],
    # fcmae curate of more than 50,000 pictures, which it clusters instead of comparing all pairs
    "curate": ["faiss-cpu>=1.9"],
    "slurm": ["submitit>=1.5.4"],
    # log.to: services that get the numbers of a run
    "wandb": ["wandb>=0.22.3"],
    "mlflow": ["mlflow-skinny>=3.1"],
}
EXTRAS["docs"] = ["sphinx>=8", "furo>=2024.8.6", "myst-parser>=4"]
EXTRAS["test"] = [
    "pytest>=8.4",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "setuptools>=68",
    "scikit-image>=0.23.2",  # real pictures to read
    *EXTRAS["dicom"],
    *EXTRAS["arrays"],
    *EXTRAS["huggingface"],
    *EXTRAS["segmentation"],
    *EXTRAS["detection"],
    *EXTRAS["onnx"],
    *EXTRAS["slurm"],
    *EXTRAS["curate"],
    *EXTRAS["wandb"],
    *EXTRAS["mlflow"],
    # examples/first_run.ipynb is run by a kernel
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "nbformat>=5.10",
]
EXTRAS["dev"] = [
    *EXTRAS["test"],
    *EXTRAS["docs"],
    "import-linter>=2.1",
    "mypy>=1.10",
    "pre-commit>=3.7",
    "ruff>=0.6",
    "uv>=0.5",
]

setup(
    name="fcmae",
    version=VERSION[1],
    description="Self-supervised pretraining of ConvNets on your own images (FCMAE, ConvNeXt V2)",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    author="The FCMAE toolkit's developers",
    url="https://arxiv.org/abs/2301.00808",
    project_urls={"Paper": "https://arxiv.org/abs/2301.00808"},
    keywords="self-supervised learning, masked autoencoder, ConvNeXt, sparse convolution",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=[
        *find_packages(include=["fcmae", "fcmae.*", "sparse", "sparse.*"]),
        *("fcmae." + ".".join(folder.relative_to(ROOT).parts) for folder in RECIPES),
    ],
    # The recipes lie at the top of the repository, and inside the package once it is installed.
    package_dir={"fcmae.configs": "configs"},
    package_data={
        "fcmae": ["py.typed"],
        "sparse": ["py.typed"],
        "sparse.ops": ["*.c"],
        **{"fcmae." + ".".join(folder.relative_to(ROOT).parts): ["*.yaml"] for folder in RECIPES},
    },
    python_requires=">=3.10",
    # The lowest with which the tests pass; .ci/run runs them with exactly these.
    install_requires=[
        "torch>=2.8",
        "torchvision>=0.23",
        "timm>=1.0.30",
        "numpy>=2.0",
        "pyyaml>=6.0",
        "jsonargparse[signatures]>=4.48",
        "docstring-parser>=0.15",
        "tqdm>=4.66",
        "matplotlib>=3.10.7",
        "tensorboard>=2.17.1",
        "safetensors>=0.4.3",
        "huggingface_hub>=0.34",
        "scikit-learn>=1.4.2",
        "scipy>=1.13",
        "pillow>=12.0",
        # Every TIFF, since TIFF is what microscopes, cameras and satellites write; its codecs read
        # deep PNG, JPEG 2000 and AVIF, too.
        "tifffile>=2024.8.24",
        "imagecodecs>=2024.6.1",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["fcmae = fcmae.__main__:console"]},
)

"""What a file may be, by its name and, where the name says nothing, by its first bytes."""

import os
import re

PICTURE_EXTENSIONS = (
    *(".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".apng"),
    *(".tif", ".tiff", ".btf", ".webp", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".dcm", ".dicom", ".npy", ".npz"),
    *(".h5", ".hdf5"),
)
# Of these, those that may hold more images than one
MANY_IMAGES_EXTENSIONS = (".dcm", ".dicom", ".npy", ".npz", ".h5", ".hdf5")
SHARD_EXTENSIONS = (".tar", ".zip")
# Never looked into, so that a set with a million notes beside its pictures is found quickly.
OTHER_EXTENSIONS = frozenset(
    (
        *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml"),
        *(".toml", ".ini", ".cfg", ".log", ".lst", ".html", ".htm", ".css", ".js", ".py", ".pyc"),
        *(".ipynb", ".sh", ".m", ".c", ".h", ".cpp", ".r", ".java", ".pdf", ".doc", ".docx"),
        *(".xls", ".xlsx", ".ppt", ".pptx", ".odt", ".tex", ".gz", ".bz2", ".xz", ".7z", ".rar"),
        *(".tgz", ".zst", ".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mp3", ".wav"),
        *(".ogg", ".flac", ".cls", ".cap", ".bib", ".db", ".sqlite", ".parquet", ".arrow"),
        *(".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".pkl", ".pickle", ".mat", ".aux"),
        *(".geojson", ".shp", ".shx", ".dbf", ".prj", ".cpg", ".tfw", ".jgw", ".pgw", ".ovr"),
        *(".svg", ".eps", ".ai", ".psd", ".exe", ".dll", ".so", ".lock", ".fcmae-index"),
        *(".heic", ".heif", ".xmp", ".thm", ".ds_store"),
        # Raw files of cameras are TIFFs by their first bytes, and hold a thumbnail as their image.
        *(".cr2", ".cr3", ".nef", ".dng", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    )
)
# The same as the ends of names in bytes, those that are met most first: a million names are asked
_USUAL = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")
PICTURE_ENDINGS = tuple(
    os.fsencode(spelled)
    for extension in dict.fromkeys((*_USUAL, *PICTURE_EXTENSIONS))
    for spelled in (extension, extension.upper())
)
# A file without a telling suffix is a picture when it begins so: (offset, bytes).
_MAGIC = (
    (0, b"\xff\xd8\xff"),  # JPEG
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"GIF87a"),
    (0, b"GIF89a"),
    (0, b"II*\x00"),  # TIFF, both byte orders, then BigTIFF
    (0, b"MM\x00*"),
    (0, b"II+\x00"),
    (0, b"MM\x00+"),
    (8, b"WEBP"),
    (4, b"ftypavif"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n"),  # JPEG 2000
    (0, b"\xff\x4f\xff\x51"),  # its code stream
    (128, b"DICM"),
    (0, b"\x93NUMPY"),
    (0, b"\x89HDF\r\n\x1a\n"),
)
_PNM = re.compile(rb"P[1-6]\s+(#.*\n)?\d+\s")
HEAD_BYTES = 132
MASK_SUFFIX = ".msk"  # behind a TIFF's whole name: GDAL's mask of it, which is a TIFF itself
HIDDEN = "hidden"  # kind of files whose name, or whose folder's name, begins with a dot
NO_SUFFIX = "without suffix"


def extension_of(name: str) -> str:
    """Return the suffix in lower case with its dot, "" without one."""
    return os.path.splitext(name)[1].lower()


def kind_of(name: str) -> str:
    """Return what a file that is no image is counted as: its suffix, or that it has none.

    A suffix of more than 12 letters is part of a name, not a kind.
    """
    extension = extension_of(name)
    return extension if 1 < len(extension) <= 12 else NO_SUFFIX


def begins_like_a_picture(head: bytes) -> bool:
    """Whether the first bytes of a file, HEAD_BYTES of them, are those of a kind of picture."""
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":  # BMP; the zeros are reserved
        return True
    if _PNM.match(head):
        return True
    return any(head[start : start + len(magic)] == magic for start, magic in _MAGIC)


def is_mask_of_gdal(name: str) -> bool:
    """Whether a file says where another one has data, by its name: a.tif.msk."""
    stem, extension = os.path.splitext(name)
    return extension.lower() == MASK_SUFFIX and extension_of(stem) in PICTURE_EXTENSIONS


def is_picture(path: str) -> bool:
    """Whether a file is taken for an image: by its suffix, else by its first bytes.

    Raises:
        OSError: it must be looked into, and cannot be read.
    """
    extension = extension_of(path)
    if extension in PICTURE_EXTENSIONS:
        return True
    if extension in OTHER_EXTENSIONS or extension in SHARD_EXTENSIONS or is_mask_of_gdal(path):
        return False
    with open(path, "rb") as file:
        return begins_like_a_picture(file.read(HEAD_BYTES))

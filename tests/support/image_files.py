"""Files as people have them, whole and broken, as bytes."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 5, 7


def colours(channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)


def grey() -> np.ndarray:
    return colours(1)[..., 0]


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def array_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def photo(form: str) -> bytes:
    rng = np.random.default_rng(3)
    return saved(Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)), form)


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\x99IDAT"
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + end


def damaged(content: bytes, where: float) -> bytes:
    """Flip bits of 8 bytes at that share of the content."""
    at = int(len(content) * where)
    return content[:at] + bytes(byte ^ 0x5A for byte in content[at : at + 8]) + content[at + 8 :]


def huge_array_header() -> bytes:
    header = array_bytes(np.zeros((10, 10), dtype=np.uint8))
    return header.replace(b"(10, 10), }          ", b"(99999999, 99999999)}")


# name -> content and what the reason must say, for 3 channels unless the name ends in a number
FAULTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "the file is empty"),
    "text": (lambda: b"hello, I am no picture\n" * 20, "no picture in a format"),
    "zeros": (lambda: bytes(5000), "no picture in a format"),
    "html": (lambda: b"<!DOCTYPE html><html>404</html>", "no picture in a format"),
    "postscript": (lambda: saved(Image.new("RGB", (4, 4)), "EPS"), "no picture in a format"),
    "pdf": (lambda: saved(Image.new("RGB", (4, 4)), "PDF"), "no picture in a format"),
    "jpeg cut in half": (lambda: photo("JPEG")[:1500], "damaged or incomplete .*truncated"),
    "jpeg cut in header": (lambda: photo("JPEG")[:30], "no picture|damaged or incomplete"),
    "jpeg start only": (lambda: b"\xff\xd8\xff", "no picture|damaged or incomplete"),
    "png cut": (lambda: photo("PNG")[:2000], "damaged or incomplete"),
    "png flipped": (lambda: damaged(photo("PNG"), 0.5), "damaged or incomplete"),
    "png header only": (lambda: png_header(10, 10), "damaged or incomplete"),
    "png of no pixels": (lambda: png_header(0, 0), "no picture|damaged or incomplete"),
    "gif cut": (lambda: photo("GIF")[:900], "damaged or incomplete"),
    "bmp cut": (lambda: photo("BMP")[:900], "damaged or incomplete"),
    "tiff cut": (lambda: photo("TIFF")[:900], "no picture|damaged or incomplete|is truncated"),
    "webp cut": (lambda: photo("WEBP")[:900], "no picture|damaged or incomplete"),
    "jpeg 2000 cut": (lambda: photo("JPEG2000")[:900], "damaged or incomplete"),
    "ppm cut": (lambda: photo("PPM")[:900], "damaged or incomplete"),
    "bomb": (lambda: png_header(60000, 60000), "more pixels than the limit of [0-9]+; cut it"),
    "half a bomb": (lambda: png_header(10000, 10000), "more pixels than the limit"),
    "float tiff beyond 1": (
        lambda: saved(Image.fromarray(np.full((4, 4), 900, np.float32)), "TIFF"),
        r"float32 values from 900 to 900, where 0 to 1 is expected; set data\.value_range",
    ),
    "array cut": (lambda: array_bytes(np.zeros((40, 50)))[:900], "truncated: too short for"),
    "array header cut": (lambda: array_bytes(np.zeros((4, 5)))[:40], "damaged or incomplete"),
    "array of a false size": (huge_array_header, "truncated: too short"),
    "array of objects": (lambda: array_bytes(np.array([{}, {}])), "type object is no image"),
    "array of text": (lambda: array_bytes(np.array([["a"]])), "is no image"),
    "array of complex": (lambda: array_bytes(np.zeros((4, 5), complex)), "is no image"),
    "array of one axis": (lambda: array_bytes(np.zeros(9)), r"shape \(9,\), where \(H, W\)"),
    "array of no pixels": (lambda: array_bytes(np.zeros((0, 9))), r"shape \(0, 9\), where"),
    "array of 4 channels": (lambda: array_bytes(np.zeros((9, 9, 4))), r"\(9, 9, 4\).* C = 3"),
    "array with nan": (lambda: array_bytes(np.full((4, 5), np.nan)), "holds NaN or infinite"),
    "array below 0": (lambda: array_bytes(np.array([[-5, 3]])), "int64 values from -5 to 3"),
    "colours for 5": (lambda: photo("PNG"), "has 3 channels where 5 .* are expected"),
    "palette for 5": (lambda: photo("GIF"), "has 3 channels where 5 .* are expected"),
    "one page for 5": (
        lambda: saved(Image.new("L", (4, 4)), "TIFF"),
        "has 1 channels where 5 .* are expected",
    ),
    "unequal pages for 2": (
        lambda: saved(
            Image.new("L", (4, 4)), "TIFF", save_all=True, append_images=[Image.new("L", (5, 4))]
        ),
        "pages differ",
    ),
}

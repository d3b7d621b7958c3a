import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lidiv_backend import images as module
from lidiv_backend.errors import BadImageError
from lidiv_backend.images import PILLOW_MAX_PIXELS, read_labels, read_rgb

COLOURS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(size: int = 200) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises much and whose body holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_rgb_is_read_as_it_is() -> None:
    rgb = read_rgb(encode(Image.fromarray(COLOURS)))
    assert rgb.dtype == np.uint8
    assert np.array_equal(rgb, COLOURS)


def test_a_path_and_its_content_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(Image.fromarray(photo()), "JPEG"))
    assert np.array_equal(read_rgb(path), read_rgb(path.read_bytes()))
    assert np.array_equal(read_rgb(str(path)), read_rgb(path))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(orientation: int, upright: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(Image.fromarray(COLOURS), exif=exif)
    assert np.array_equal(read_rgb(encoded), upright(COLOURS))  # type: ignore[operator]


def test_grey_and_palette_become_rgb() -> None:
    grey = Image.fromarray(COLOURS[..., 0])
    assert np.array_equal(read_rgb(encode(grey)), np.repeat(COLOURS[..., :1], 3, axis=2))
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert read_rgb(encode(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_transparency_is_laid_on_white() -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    expected = [[200, 0, 0], [255, 255, 255], [204, 204, 204]]
    assert read_rgb(encode(Image.fromarray(rgba))).tolist() == [expected]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert read_rgb(encode(palette, transparency=0)).tolist() == [[[255] * 3, [40, 50, 60]]]


def translucent(mode: str) -> Image.Image:
    """256 x 256 pixels: every value at every opacity, as far as the mode has them."""
    value, alpha = np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2)
    if mode in ("RGB", "L", "P"):
        # One value stands for nothing at all.
        image = Image.fromarray(np.stack([value, alpha, 255 - value], -1)).convert(mode)
        image.info["transparency"] = image.getpixel((3, 5))
        return image
    image = Image.fromarray(np.stack([value, value[::-1], 255 - value, alpha], -1))
    if mode == "PA":
        opaque = image.convert("RGB").quantize(16).convert("PA")
        opaque.putalpha(image.getchannel("A"))
        return opaque
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGBA", "PNG"),
        ("RGBA", "TIFF"),
        ("RGBA", "WEBP"),
        ("LA", "PNG"),
        ("PA", "TIFF"),
        ("P", "PNG"),
        ("RGB", "PNG"),
        ("L", "PNG"),
    ],
)
def test_every_kind_of_transparency_is_laid_on_white(mode: str, kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    content = encode(translucent(mode), kind, **options)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.mode, image.has_transparency_data) == (mode, True)
        rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    assert alpha.min() == 0
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.array_equal(read_rgb(content), np.rint(expected))


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[bool] = []
    convert = module._to_rgb

    def note(image: Image.Image) -> Image.Image:
        alone.append(module._ONE_LARGE.locked())
        return convert(image)

    monkeypatch.setattr(module, "_to_rgb", note)
    monkeypatch.setattr(module, "_LARGE_PIXELS", 39_999)
    small, large = (encode(Image.fromarray(photo(size))) for size in (199, 200))
    read_rgb(small)
    read_rgb(large)
    with pytest.raises(BadImageError):
        read_rgb(large[: len(large) // 2])
    # One that is damaged is not in the way of the next.
    read_rgb(large)
    assert alone == [False, True, True]


def test_sixteen_bits_keep_their_upper_half() -> None:
    wide = Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16))
    assert read_rgb(encode(wide))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_cmyk_is_converted() -> None:
    white = Image.new("CMYK", (4, 4), (0, 0, 0, 0))
    assert read_rgb(encode(white, "JPEG")).min() >= 250


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated_files_are_refused(kind: str) -> None:
    whole = encode(Image.fromarray(photo()), kind)
    read_rgb(whole)
    with pytest.raises(BadImageError):
        read_rgb(whole[: len(whole) // 2])


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG"])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(BadImageError):
        read_rgb(content)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="does not exist"):
        read_rgb(tmp_path / "gone.png")


def test_floats_have_no_agreed_range() -> None:
    with pytest.raises(BadImageError, match="8-bit"):
        read_rgb(encode(Image.new("F", (2, 2)), "TIFF"))


# Pillow warns by itself from 89 million pixels on.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_size_is_checked_before_decoding() -> None:
    # Decoding would fail, since there are no pixels: the message shows what came first.
    with pytest.raises(BadImageError, match="more than the limit of 100,000,000"):
        read_rgb(png_claiming(12_000, 9_000))
    with pytest.raises(BadImageError):
        read_rgb(png_claiming(1_000_000, 1_000_000))
    with pytest.raises(BadImageError, match="limit of 39,999"):
        read_rgb(encode(Image.fromarray(photo(200))), max_pixels=39_999)
    read_rgb(encode(Image.fromarray(photo(200))), max_pixels=40_000)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pillows_own_limit_is_what_is_said_of_it() -> None:
    with pytest.raises(BadImageError, match=f"exceeds limit of {PILLOW_MAX_PIXELS} pixels"):
        read_rgb(png_claiming(PILLOW_MAX_PIXELS + 1, 1), max_pixels=2 * PILLOW_MAX_PIXELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_label_maps_keep_their_numbers(dtype: type) -> None:
    numbers = np.array([[0, 1, 200], [3, 255, 7]]).astype(dtype)
    if dtype is np.uint16:
        numbers[0, 0] = 40_000
    assert np.array_equal(read_labels(encode(Image.fromarray(numbers))), numbers)


def test_palette_masks_give_indices() -> None:
    numbers = np.array([[0, 1, 255]], dtype=np.uint8)
    palette = Image.fromarray(numbers, "P")
    palette.putpalette(list(range(256)) * 3)
    assert np.array_equal(read_labels(encode(palette)), numbers)


def test_one_bit_masks_are_read() -> None:
    mask = np.array([[True, False, True]])
    assert read_labels(encode(Image.fromarray(mask))).tolist() == [[1, 0, 1]]


def test_colour_masks_keep_grey_and_tell_colours_apart() -> None:
    grey = np.repeat(np.array([[[0], [255]]], dtype=np.uint8), 3, axis=2)
    assert read_labels(encode(Image.fromarray(grey))).tolist() == [[0, 255]]
    coloured = np.array([[[0, 0, 0], [1, 0, 0], [0, 0, 2]]], dtype=np.uint8)
    assert read_labels(encode(Image.fromarray(coloured))).tolist() == [[0, 65536, 2]]
    alpha_only = np.array([[[0, 0, 0, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    assert read_labels(encode(Image.fromarray(alpha_only))).tolist() == [[0, 255]]

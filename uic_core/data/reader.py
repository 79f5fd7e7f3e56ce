"""Read image files to uint8 RGB arrays, the same way everywhere. Imports no torch: the report shows images too.

Images are turned upright (by EXIF; where it says nothing, by XMP), then converted to RGB: grey is repeated, palettes
are looked up, transparency is laid over white, CMYK uses Pillow's conversion, 16-bit grey keeps its high byte.
Animations give their first frame. A crop is always a box of the upright image, resized to a square in one antialiased
bilinear step.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from uic_core.errors import InputError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the upright image; right and bottom are exclusive, fractions allowed."""

# A closed list: some of Pillow's other formats start programs (EPS) or are rarely fuzzed.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_TURNED_BY_XMP = re.compile(rb'tiff:Orientation(="|>)[2-8]')  # as Pillow finds it
# A JPEG is decoded at 1/2, 1/4 or 1/8 only if the crop still has at least this many times the output's side. The
# bilinear filter does the rest: the mean difference stays near one grey level of 255, in half the time or less.
_SPARE = 1.5
# No photograph is stretched like that. Scaled to a shorter side of 256 it would have 13 million pixels.
_STRETCHED = 200
# Pixels up to which ten crops resize the whole image, as torchvision does; beyond, each crop's window alone.
_WHOLE = 256 * 256 * _STRETCHED


def read_rgb(path: Path) -> Image.Image:
    """Read a whole image, upright, in mode RGB.

    Raises:
        InputError: missing, truncated or not an image; names the file.
    """
    with _open(path) as image:
        return _decode(image, path)


def read_part(path: Path, choose: Callable[[int, int], Box], size: int) -> tuple[NDArray[np.uint8], Box]:
    """Read what a square crop needs; a JPEG is decoded at reduced size if the crop is large.

    Args:
        choose: called with the upright image's (width, height), returns the box to read.
        size: side S of the crop that will be made, pixels.

    Returns:
        uint8 array [height, width, 3] of the whole image, perhaps reduced, and the box in its pixels.

    Raises:
        InputError: missing, truncated or not an image; names the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    shape = _jpeg_size(data)
    if shape is not None:
        box = choose(*shape)
        oversize = min(box[2] - box[0], box[3] - box[1]) / size
        reduction = next((factor for factor in (8, 4, 2) if oversize >= factor * _SPARE), 1)
        pixels = decode_jpeg(data, *shape, reduction)
        if pixels is not None:
            left, top, right, bottom = (edge / reduction for edge in box)
            return pixels, (left, top, min(right, pixels.shape[1]), min(bottom, pixels.shape[0]))
    # Pillow reads more formats, recovers what it can of damaged files, and says what is wrong with them.
    with _open(path, data) as image:
        pixels = np.array(_decode(image, path))
    return pixels, choose(pixels.shape[1], pixels.shape[0])


def check(path: Path) -> None:
    """Decode a whole file, a JPEG at 1/8 size: every byte is read, but few pixels are made.

    Raises:
        InputError: missing, truncated, not an image or far longer than wide; names the file.
    """
    with _open(path) as image:
        if max(image.size) > _STRETCHED * min(image.size):
            raise InputError(
                f"{path}: is {image.width}×{image.height} pixels, one side more than {_STRETCHED} times the other; "
                "remove or crop it"
            )
        image.draft("", (max(1, image.width // 8), max(1, image.height // 8)))
        _decode(image, path)


def decode_jpeg(
    data: bytes | NDArray[np.uint8], width: int, height: int, reduction: int = 1
) -> NDArray[np.uint8] | None:
    """Decode a JPEG with one or three channels to the same pixels as Pillow, in half the time.

    Args:
        width, height: those of the file, pixels.
        reduction: 1, 2, 4 or 8; divides width and height, rounding up.

    Returns:
        uint8 [height, width, 3]; None if the file is damaged or of another size.
    """
    width, height = -(-width // reduction), -(-height // reduction)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, min_width=width, min_height=height, min_factor=reduction
        )
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def resized_crop(image: Image.Image, box: Box, size: int) -> NDArray[np.uint8]:
    """Resize a box of an RGB image to a square.

    Beyond the crop's edge the filter uses the true neighbours, while torchvision's resized_crop repeats the edge: the
    outermost ring of pixels differs, the inside does not.

    Returns:
        uint8 array [3, size, size].
    """
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def scaled_size(width: int, height: int, resize: int) -> tuple[int, int]:
    """Return (width, height) with shorter side `resize`; the longer side is rounded down, as in torchvision."""
    shorter = min(width, height)
    return resize * width // shorter, resize * height // shorter


def shorter_side(image: Image.Image, resize: int) -> Image.Image:
    """Resize the whole image to a shorter side of `resize` pixels, up or down (antialiased bilinear)."""
    return image.resize(scaled_size(*image.size, resize), Image.Resampling.BILINEAR)


def window(width: int, height: int, resize: int, crop: int, left: int, top: int) -> Box:
    """Return the box that becomes the crop at (left, top) of the image with shorter side `resize`.

    Resizing this box gives the same pixels as resizing the whole image and then cropping, at a fraction of the cost.
    """
    scaled_width, scaled_height = scaled_size(width, height, resize)
    across, down = width / scaled_width, height / scaled_height
    right, bottom = min((left + crop) * across, width), min((top + crop) * down, height)
    return left * across, top * down, right, bottom


def center_window(width: int, height: int, resize: int, crop: int) -> Box:
    """Return the box that becomes the centre crop (side `crop`) of the image with shorter side `resize`."""
    assert crop <= resize, f"a crop of {crop} does not fit into a shorter side of {resize}"
    scaled_width, scaled_height = scaled_size(width, height, resize)
    return window(width, height, resize, crop, round((scaled_width - crop) / 2), round((scaled_height - crop) / 2))


def center_crop(image: Image.Image, resize: int, crop: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `resize`, then cut out the centre square of side `crop`.

    Returns:
        uint8 array [3, crop, crop].
    """
    return resized_crop(image, center_window(*image.size, resize, crop), crop)


def ten_crop(image: Image.Image, resize: int, crop: int) -> NDArray[np.uint8]:
    """Resize the shorter side; return four corners and centre, then those of the mirrored image.

    Same crops and order as torchvision's TenCrop. The mirrored image is cropped anew: if an odd number of columns is
    left over, its centre crop is one column off the mirrored centre crop.

    Returns:
        uint8 array [10, 3, crop, crop].
    """
    assert crop <= resize, f"a crop of {crop} does not fit into a shorter side of {resize}"
    width, height = scaled_size(*image.size, resize)
    bottom, right = height - crop, width - crop
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    if width * height > _WHOLE:
        boxes = [window(*image.size, resize, crop, x, y) for y, x in places]
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.stack([resized_crop(view, box, crop) for view in (image, mirrored) for box in boxes])
    pixels = np.asarray(shorter_side(image, resize)).transpose(2, 0, 1)
    views = (pixels, pixels[..., ::-1])
    return np.stack([view[:, y : y + crop, x : x + crop] for view in views for y, x in places])


def _open(path: Path, data: bytes | None = None) -> Image.Image:
    """Read the header, for size and orientation. JPEGs decode their pixels later; other formats cannot."""
    try:
        image = Image.open(path if data is None else io.BytesIO(data), formats=FORMATS)
        if not _is_jpeg(image):
            image.load()
        return image
    except Exception as error:  # a decoder can raise almost anything on untrusted bytes
        raise _unreadable(path, error) from error


def _decode(image: Image.Image, path: Path) -> Image.Image:
    try:
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        return _rgb(image.transpose(turn) if turn is not None else image)
    except Exception as error:  # see _open
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image of a known format"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = str(error) or type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}); fetch it again")


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")


def _orientation(image: Image.Image) -> int:
    """Return the orientation by EXIF or XMP, 1 to 8; 1 if it is missing or invalid, as in image viewers."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # metadata may be broken though the pixels are good
        return 1
    return value if value in _UPRIGHT else 1


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG that needs no conversion to upright RGB; None for anything else."""
    place = 2 if data.startswith(b"\xff\xd8") else len(data)
    while data[place : place + 2] != b"\xff\xda":  # the segments before the image data
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        if data[place : place + 1] != b"\xff" or data[place + 4 : place + 10] == b"Exif\0\0":  # may need rotation
            return None
        if data.startswith(_XMP, place + 4) and _TURNED_BY_XMP.search(data, place, end):
            return None
        place = end
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:  # Pillow refuses it, and says so
        return None
    return (width, height) if colours in ("Gray", "YCbCr", "RGB") else None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no agreed range")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return image.convert("RGB")

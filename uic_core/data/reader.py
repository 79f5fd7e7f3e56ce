"""Image files to uint8 RGB arrays: one way of reading, everywhere. Imports no torch: the report shows images too.

Upright (EXIF orientation applied), then RGB: grey is repeated, palettes are looked up, transparency is laid over
white, CMYK goes through Pillow's conversion, 16-bit grey keeps its high byte. Animations give their first frame.
A crop is always a box of the upright image that is resized to a square in one antialiased bilinear step.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from uic_core.errors import InputError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the upright image; right and bottom are exclusive, fractions allowed."""

# A closed list: among Pillow's other formats are some that start programs (EPS) or are rarely fuzzed.
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
# A JPEG is decoded at 1/2, 1/4 or 1/8 only while the crop stays at least this many times the output's side: what is
# left for the bilinear filter then keeps the mean difference near one grey level of 255, at half the time or less.
_SPARE = 1.5


def read_rgb(path: Path) -> Image.Image:
    """Read an image whole, upright, mode RGB.

    Raises:
        InputError: missing, truncated, or no image; names the file.
    """
    with _open(path) as image:
        return _decode(image, path)


def read_part(path: Path, choose: Callable[[int, int], Box], size: int) -> tuple[NDArray[np.uint8], Box]:
    """Read what a square crop needs: JPEGs at reduced size where the crop is large.

    Args:
        choose: called with the upright image's (width, height), returns the box to read.
        size: side S of the crop that will be made of it, pixels.

    Returns:
        uint8 array [height, width, 3] of the whole image, perhaps reduced, and the box in its pixels.

    Raises:
        InputError: missing, truncated, or no image; names the file.
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
    # Pillow knows more kinds of files, what can be saved of a damaged one, and what is wrong with it.
    with _open(path, data) as image:
        pixels = np.array(_decode(image, path))
    return pixels, choose(pixels.shape[1], pixels.shape[0])


def check(path: Path) -> None:
    """Decode a whole file, JPEGs at 1/8 size: every byte is read, few pixels are made.

    Raises:
        InputError: missing, truncated, or no image; names the file.
    """
    with _open(path) as image:
        image.draft("", (image.width // 8, image.height // 8))
        _decode(image, path)


def decode_jpeg(
    data: bytes | NDArray[np.uint8], width: int, height: int, reduction: int = 1
) -> NDArray[np.uint8] | None:
    """Pixels of a JPEG with one or three channels, the same as Pillow's in half the time.

    Args:
        width, height: those of the file, pixels.
        reduction: 1, 2, 4 or 8, to divide them by, rounding up.

    Returns:
        uint8 [height, width, 3]; None if the file is damaged or not what was said.
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

    Where torchvision's resized_crop repeats the crop's edge, the filter here sees the true neighbours beyond it:
    the outermost ring of pixels differs, the inside does not.

    Returns:
        uint8 array [3, size, size].
    """
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def scaled_size(width: int, height: int, resize: int) -> tuple[int, int]:
    """(width, height) after the shorter side became `resize`; the longer one is rounded down, as in torchvision."""
    shorter = min(width, height)
    return resize * width // shorter, resize * height // shorter


def shorter_side(image: Image.Image, resize: int) -> Image.Image:
    """The whole image, its shorter side resized to `resize` pixels, up or down (antialiased bilinear)."""
    return image.resize(scaled_size(*image.size, resize), Image.Resampling.BILINEAR)


def window(width: int, height: int, resize: int, crop: int, left: int, top: int) -> Box:
    """The box that becomes the crop at (left, top) of the image with shorter side `resize`.

    Reading this box gives the same pixels as resizing the whole image and cropping after, at a part of the cost.
    """
    scaled_width, scaled_height = scaled_size(width, height, resize)
    across, down = width / scaled_width, height / scaled_height
    right, bottom = min((left + crop) * across, width), min((top + crop) * down, height)
    return left * across, top * down, right, bottom


def center_window(width: int, height: int, resize: int, crop: int) -> Box:
    """The box that becomes the centre crop (side `crop`) of the image with shorter side `resize`."""
    assert crop <= resize, f"a crop of {crop} does not fit into a shorter side of {resize}"
    scaled_width, scaled_height = scaled_size(width, height, resize)
    return window(width, height, resize, crop, round((scaled_width - crop) / 2), round((scaled_height - crop) / 2))


def center_crop(image: Image.Image, resize: int, crop: int) -> NDArray[np.uint8]:
    """Shorter side to `resize`, then the centre square of side `crop`.

    Returns:
        uint8 array [3, crop, crop].
    """
    return resized_crop(image, center_window(*image.size, resize, crop), crop)


def ten_crop(image: Image.Image, resize: int, crop: int) -> NDArray[np.uint8]:
    """Shorter side to `resize`; its four corners and centre, then those of the mirrored image (PROTOCOL section 4).

    As torchvision's TenCrop, in its order. The mirrored image is cut anew: where an odd number of columns is left over,
    its centre crop lies one column beside the mirrored centre crop.

    Returns:
        uint8 array [10, 3, crop, crop].
    """
    assert crop <= resize, f"a crop of {crop} does not fit into a shorter side of {resize}"
    pixels = np.asarray(shorter_side(image, resize)).transpose(2, 0, 1)
    bottom, right = pixels.shape[1] - crop, pixels.shape[2] - crop
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    views = (pixels, pixels[..., ::-1])
    return np.stack([view[:, y : y + crop, x : x + crop] for view in views for y, x in places])


def _open(path: Path, data: bytes | None = None) -> Image.Image:
    """Read the header, so that size and orientation are known; only JPEGs can wait with their pixels."""
    try:
        image = Image.open(path if data is None else io.BytesIO(data), formats=FORMATS)
        if not _is_jpeg(image):
            image.load()
        return image
    except Exception as error:  # a decoder fed with outside bytes raises nearly anything
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
    """EXIF orientation 1 to 8; 1 where there is none or it makes no sense, as viewers do."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata beside good pixels
        return 1
    return value if value in _UPRIGHT else 1


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that needs no conversion to become upright RGB; None for anything else."""
    place = 2 if data.startswith(b"\xff\xd8") else len(data)
    while data[place : place + 2] != b"\xff\xda":  # the segments before the picture
        if data[place : place + 1] != b"\xff" or data[place + 4 : place + 10] == b"Exif\0\0":  # perhaps to be turned
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
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

"""Reading images: every mode becomes RGB the same way, crops equal torchvision's, bad files are named."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import TenCrop
from torchvision.transforms import functional as tv
from torchvision.transforms.functional import InterpolationMode

from uic_core.data import reader
from uic_core.data.crop import crop
from uic_core.errors import InputError


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image with structure at several scales, and different at each corner."""
    rng = np.random.default_rng(seed)
    layers = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in (2, 8, 32)]
    scaled = [np.asarray(Image.fromarray(layer).resize((width, height), 2), np.float64) for layer in layers]
    return Image.fromarray((np.average(scaled, axis=0, weights=[4, 2, 1])).astype(np.uint8))


def read_crop(path: Path, choose: Callable[[int, int], reader.Box], size: int) -> np.ndarray:
    """A crop as the loader reads it."""
    return cropped(*reader.read_part(path, choose, size), size)


def cropped(pixels: np.ndarray, box: reader.Box, size: int) -> np.ndarray:
    """`crop`, as a new array [3, size, size]."""
    out = torch.empty(size, size, 3, dtype=torch.uint8)
    crop(pixels, box, out)
    return out.numpy().transpose(2, 0, 1)


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1).astype(int)


# ---- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(tmp_path: Path, mode: str):
    image = smooth(20, 14).convert(mode)
    path = tmp_path / "image.tiff"
    image.save(path)
    got = reader.read_rgb(path)
    assert got.mode == "RGB"
    np.testing.assert_array_equal(as_array(got), as_array(image.convert("RGB")))


def test_cmyk_and_grey_jpegs_keep_their_colours(tmp_path: Path):
    image = smooth(64, 48)
    for mode in ("CMYK", "L"):
        image.convert(mode).save(tmp_path / f"{mode}.jpg", quality=95)
        want = as_array(image.convert(mode).convert("RGB"))
        assert abs(as_array(reader.read_rgb(tmp_path / f"{mode}.jpg")) - want).mean() < 4


def test_transparency_is_laid_over_white(tmp_path: Path):
    image = Image.new("RGBA", (4, 1))
    for x, alpha in enumerate((0, 85, 170, 255)):
        image.putpixel((x, 0), (90, 0, 30, alpha))
    image.save(tmp_path / "alpha.png")
    got = as_array(reader.read_rgb(tmp_path / "alpha.png"))[:, 0]
    over = np.array([0, 85, 170, 255]) / 255
    want = np.array([[90], [0], [30]]) * over + 255 * (1 - over)
    assert abs(got - want).max() <= 1


def test_a_transparent_palette_entry_becomes_white(tmp_path: Path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=0)
    np.testing.assert_array_equal(
        as_array(reader.read_rgb(tmp_path / "palette.png"))[:, 0].T, [[255] * 3, [200, 100, 0]]
    )


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path):
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(as_array(reader.read_rgb(tmp_path / "deep.png"))[0], values >> 8)


def by_exif(orientation: int) -> dict:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def by_xmp(orientation: int) -> dict:
    """As an editor writes it: an attribute, or an element."""
    attribute = f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
    element = f"<rdf:Description><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>"
    return {"xmp": f"<x:xmpmeta><rdf:RDF>{attribute if orientation % 2 else element}</rdf:RDF></x:xmpmeta>".encode()}


@pytest.mark.parametrize("tag", [by_exif, by_xmp])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_whole_images_and_crops(tmp_path: Path, orientation: int, tag: Callable[[int], dict]):
    path = tmp_path / "turned.jpg"
    smooth(60, 40).save(path, **tag(orientation), quality=95)
    want = ImageOps.exif_transpose(Image.open(path))
    np.testing.assert_array_equal(as_array(reader.read_rgb(path)), as_array(want))

    seen: list[tuple[int, int]] = []

    def choose(width: int, height: int) -> reader.Box:
        seen.append((width, height))
        return 5, 7, 25, 27

    got = read_crop(path, choose, 16)
    assert seen == [want.size]
    np.testing.assert_array_equal(got, cropped(np.array(want), (5, 7, 25, 27), 16))


def test_xmp_that_turns_nothing_decodes_at_reduced_size(tmp_path: Path):
    """As does a file without any: its crops are what they were."""
    smooth(400, 300).save(tmp_path / "xmp.jpg", **by_xmp(1))
    smooth(400, 300).save(tmp_path / "plain.jpg")
    got, want = (reader.read_part(tmp_path / f"{name}.jpg", lambda w, h: (0, 0, w, h), 64) for name in ("xmp", "plain"))
    assert got[1] == want[1] == (0, 0, 200, 150)
    np.testing.assert_array_equal(got[0], want[0])


def test_senseless_exif_is_ignored(tmp_path: Path):
    image = smooth(20, 20)
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "bad.jpg", exif=b"Exif\0\0garbage that is no TIFF header")
    exif = Image.Exif()
    exif[0x0112] = 99
    image.save(tmp_path / "unknown.jpg", exif=exif)
    want = as_array(reader.read_rgb(tmp_path / "plain.jpg"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(as_array(reader.read_rgb(tmp_path / "bad.jpg")), want)
    np.testing.assert_array_equal(as_array(reader.read_rgb(tmp_path / "unknown.jpg")), want)


# ---- bad files ------------------------------------------------------------------------------------------------------


def _bad_files(folder: Path) -> dict[str, str]:
    """Files that must be refused, with a part of the reason."""
    smooth(300, 200).save(folder / "whole.jpg")
    smooth(300, 200).save(folder / "whole.png")
    for kind in ("jpg", "png"):
        data = (folder / f"whole.{kind}").read_bytes()
        (folder / f"cut.{kind}").write_bytes(data[: len(data) * 2 // 3])
        (folder / f"header.{kind}").write_bytes(data[:30])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("404 not found")
    smooth(8, 8).save(folder / "script.jpg", format="EPS")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tiff")
    (folder / "folder.jpg").mkdir()
    return {
        "cut.jpg": "truncated",
        "cut.png": "",
        "header.jpg": "",
        "header.png": "",
        "empty.jpg": "not an image of a known format",
        "text.jpg": "not an image of a known format",
        "script.jpg": "not an image of a known format",
        "float.tiff": "mode F",
        "folder.jpg": "directory",
        "missing.jpg": "No such file",
    }


def test_unreadable_files_are_named_with_reason_and_remedy(tmp_path: Path):
    readings = (reader.read_rgb, reader.check, lambda path: read_crop(path, lambda w, h: (0, 0, w, h), 8))
    for name, reason in _bad_files(tmp_path).items():
        for reading in readings:
            with pytest.raises(InputError) as caught:
                reading(tmp_path / name)
            message = str(caught.value)
            assert message.startswith(f"{tmp_path / name}: cannot be read (")
            assert reason in message
            assert message.endswith("fetch it again")


def test_a_jpeg_cut_anywhere_is_found_by_the_reduced_decode(tmp_path: Path):
    smooth(320, 240).save(tmp_path / "whole.jpg", quality=92)
    data = (tmp_path / "whole.jpg").read_bytes()
    reader.check(tmp_path / "whole.jpg")
    for part in (0.1, 0.3, 0.6, 0.9, 0.99):
        (tmp_path / "cut.jpg").write_bytes(data[: int(len(data) * part)])
        with pytest.raises(InputError):
            reader.check(tmp_path / "cut.jpg")


def test_a_mistake_in_choose_is_not_blamed_on_the_file(tmp_path: Path):
    smooth(20, 20).save(tmp_path / "a.jpg")

    def choose(width: int, height: int) -> reader.Box:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read_crop(tmp_path / "a.jpg", choose, 8)


# ---- crops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(100, 75), (75, 100), (84, 84), (333, 500), (501, 89), (31, 40)])
@pytest.mark.parametrize(("resize", "crop"), [(64, 64), (73, 64), (64, 57)])
def test_center_crop_equals_torchvision(width: int, height: int, resize: int, crop: int):
    image = smooth(width, height)
    want = tv.center_crop(tv.resize(image, resize, InterpolationMode.BILINEAR), [crop, crop])
    got = reader.center_crop(image, resize, crop)
    assert got.shape == (3, crop, crop)
    assert abs(got - as_array(want)).max() <= 1  # one rounding more or less in the fixed-point filter


def test_scaled_size_equals_torchvision():
    rng = np.random.default_rng(0)
    for width, height, resize in rng.integers(20, 600, (200, 3)).tolist():
        want = tv.resize(Image.new("1", (width, height)), resize, InterpolationMode.NEAREST).size
        assert reader.scaled_size(width, height, resize) == want


@pytest.mark.parametrize("width", [70, 71, 72, 73])  # 6 to 9 columns are left over: odd numbers round both ways
@pytest.mark.parametrize("height", [70, 71, 72, 73])
def test_ten_crop_equals_torchvisions(width: int, height: int):
    image, shorter = smooth(width, height), min(width, height)  # as wide and as high after resizing
    want = [as_array(crop) for crop in TenCrop(64)(image)]
    np.testing.assert_array_equal(reader.ten_crop(image, shorter, 64), want)


def test_ten_crop_resizes_as_torchvision():
    image = smooth(96, 121)
    want = TenCrop(64)(tv.resize(image, 70, InterpolationMode.BILINEAR))
    np.testing.assert_array_equal(reader.ten_crop(image, 70, 64), [as_array(crop) for crop in want])


def test_a_window_equals_cropping_after_resizing_the_whole():
    image = smooth(123, 90)
    whole = as_array(reader.shorter_side(image, 70))
    for left, top in [(0, 0), (3, 5), (whole.shape[2] - 64, whole.shape[1] - 64)]:
        got = reader.resized_crop(image, reader.window(*image.size, 70, 64, left, top), 64)
        assert abs(got - whole[:, top : top + 64, left : left + 64]).max() <= 1


@pytest.mark.parametrize("box", [(10, 5, 90, 65), (0, 0, 120, 90), (40, 30, 70, 52)])
def test_resized_crop_equals_torchvision_inside_the_outermost_ring(box: tuple[int, int, int, int]):
    image = smooth(120, 90)
    left, top, right, bottom = box
    want = as_array(tv.resized_crop(image, top, left, bottom - top, right - left, [48, 48], InterpolationMode.BILINEAR))
    got = reader.resized_crop(image, box, 48)
    assert abs(got - want)[:, 1:-1, 1:-1].max() <= 1
    assert abs(got - want).mean() < 1


def test_large_crops_are_decoded_small_and_look_the_same(tmp_path: Path):
    path = tmp_path / "large.jpg"
    smooth(1001, 777).save(path, quality=95)
    for side, reduction in [(700, 8), (340, 4), (170, 2), (90, 1)]:
        box = (200, 40, 200 + side, 40 + side)
        pixels, part = reader.read_part(path, lambda w, h, box=box: box, 56)
        assert pixels.shape == (-(-777 // reduction), -(-1001 // reduction), 3)
        want = reader.resized_crop(reader.read_rgb(path), box, 56)
        assert abs(cropped(pixels, part, 56).astype(int) - want).mean() < 1.5


@pytest.mark.parametrize("orientation", range(2, 9))
def test_large_crops_of_turned_images_look_the_same(tmp_path: Path, orientation: int):
    path = tmp_path / "large.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth(403, 301).save(path, quality=95, exif=exif)
    box = (10, 21, 270, 281)
    want = reader.resized_crop(reader.read_rgb(path), box, 24)
    assert abs(read_crop(path, lambda w, h: box, 24).astype(int) - want)[:, 1:-1, 1:-1].max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "settings", [{"subsampling": n} for n in range(3)] + [{"progressive": True}, {"optimize": True}]
)
def test_turbo_decodes_what_pillow_does(tmp_path: Path, mode: str, settings: dict[str, int]):
    path = tmp_path / "image.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (47, 83, 3), np.uint8)).convert(mode).save(path, quality=90, **settings)
    got = reader.decode_jpeg(path.read_bytes(), 83, 47)
    np.testing.assert_array_equal(got, np.asarray(reader.read_rgb(path)))
    assert reader.decode_jpeg(path.read_bytes(), 83, 48) is None
    assert reader.decode_jpeg(path.read_bytes()[:-200], 83, 47) is None


def test_a_jpeg_that_only_warns_is_still_an_image(tmp_path: Path):
    """Some of ImageNet's files hold stray bytes between their segments; Pillow reads them, and so do we."""
    path = tmp_path / "stray.jpg"
    smooth(64, 48).save(path, quality=90)
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"stray" + data[-2:])
    assert reader.decode_jpeg(path.read_bytes(), 64, 48) is None
    pixels, _ = reader.read_part(path, lambda w, h: (0, 0, w, h), 48)
    np.testing.assert_array_equal(pixels, np.asarray(reader.read_rgb(path)))


@pytest.mark.parametrize("box", [(10, 5, 90, 65), (0, 0, 120, 90), (40, 30, 70, 52), (3, 1, 119, 31)])
def test_whole_pixel_boxes_are_resized_as_torchvision_does(box: tuple[int, int, int, int]):
    """By torch, and within 2/255 of Pillow on the mean."""
    image = smooth(120, 90)
    left, top, right, bottom = box
    want = as_array(tv.resized_crop(image, top, left, bottom - top, right - left, [48, 48], InterpolationMode.BILINEAR))
    got = cropped(np.array(image), box, 48).astype(int)
    assert abs(got - want).max() <= 1
    assert abs(got - reader.resized_crop(image, box, 48)).mean() < 2


def test_fractional_boxes_are_resized_by_pillow():
    image = smooth(120, 90)
    box = (10.5, 5.25, 90.125, 65)
    got = cropped(np.array(image), box, 48)
    np.testing.assert_array_equal(got, reader.resized_crop(image, box, 48))


def test_reduced_decoding_shifts_nothing(tmp_path: Path):
    """A linear ramp has no detail to lose, so a reduced decode must give the same numbers, also up to the far edge."""
    ramp = np.add.outer(np.linspace(0, 120, 771), np.linspace(0, 120, 1003))
    path = tmp_path / "ramp.jpg"
    Image.fromarray(np.repeat(ramp[..., None], 3, 2).astype(np.uint8)).save(path, quality=100)
    for box in [(0, 0, 771, 771), (232, 0, 1003, 771), (403, 171, 1003, 771)]:
        got = read_crop(path, lambda w, h, box=box: box, 64).astype(int)
        want = reader.resized_crop(reader.read_rgb(path), box, 64)
        assert abs(got - want).max() <= 2


def test_a_crop_larger_than_the_shorter_side_is_our_mistake():
    with pytest.raises(AssertionError, match="does not fit"):
        reader.center_crop(smooth(40, 40), 32, 33)


# ---- sizes that no camera makes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", [0, 1, 2, "grey"])
def test_fault_48_jpegs_of_any_few_pixels_are_decoded(
    tmp_path: Path, subsampling: int | str, seen: Callable[[object], None]
):
    for width in range(1, 17):
        for height in range(1, 17):
            path = tmp_path / f"{width}x{height}.jpg"
            image = smooth(width, height)
            if subsampling == "grey":
                image.convert("L").save(path)
            else:
                image.save(path, subsampling=subsampling, progressive=width % 2 == 0)
            reader.check(path)
            whole = np.asarray(reader.read_rgb(path))
            assert whole.shape == (height, width, 3)
            pixels, box = reader.read_part(path, lambda w, h: (0, 0, w, h), 8)
            np.testing.assert_array_equal(pixels, whole)
            assert cropped(pixels, box, 8).shape == (3, 8, 8)
            # 1/2 to 1/8 of it, as a crop to one or two pixels is read
            assert cropped(*reader.read_part(path, lambda w, h: (0, 0, w, h), 1), 1).shape == (3, 1, 1)
    seen("1×1 to 16×16 pixels are decoded")


def test_fault_62_a_stretched_image_is_refused_with_its_size(tmp_path: Path, seen: Callable[[object], None]):
    for size, name in (((1, 100_000), "tall.png"), ((60_000, 3), "wide.jpg"), ((201, 1), "small.gif")):
        path = tmp_path / name
        Image.new("RGB", size).save(path)
        with pytest.raises(InputError) as caught:
            reader.check(path)
        seen(caught.value)
        assert str(caught.value).startswith(f"{path}: is {size[0]}×{size[1]} pixels, one side more than 200 times")
    for size in ((200, 1), (3, 600)):
        Image.new("RGB", size).save(tmp_path / "fine.png")
        reader.check(tmp_path / "fine.png")


def test_fault_62_ten_crops_of_a_stretched_image_take_little_memory():
    """Resized as a whole, the first would take 26 GB; 1.5 GB are allowed."""
    code = (
        "import resource, numpy as np; from PIL import Image; from uic_core.data import reader\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))\n"
        "for size in ((1, 100_000), (90_000, 7)):\n"
        "    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))\n"
        "    crops = reader.ten_crop(image, 256, 224)\n"
        "    assert crops.shape == (10, 3, 224, 224)\n"
        "    flipped = reader.ten_crop(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 256, 224)\n"
        "    assert (crops[[5, 6]] == flipped[[0, 1]]).all() and (crops != crops[0]).any()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(reader.__file__).parents[2], capture_output=True)
    assert not done.returncode, done.stderr.decode()


def test_fault_62_crops_by_their_windows_are_those_of_the_whole_resized_image(monkeypatch: pytest.MonkeyPatch):
    image = smooth(90, 400)
    whole = reader.ten_crop(image, 64, 56)
    monkeypatch.setattr(reader, "_WHOLE", 0)
    assert abs(reader.ten_crop(image, 64, 56).astype(int) - whole).max() <= 1


def test_fault_49_a_jpeg_that_would_fill_the_memory_is_named(tmp_path: Path, seen: Callable[[object], None]):
    """A small file that says it is 60,000 × 60,000 pixels."""
    path = tmp_path / "bomb.jpg"
    smooth(16, 16).save(path)
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
    path.write_bytes(data)
    for read in (reader.check, reader.read_rgb, lambda path: reader.read_part(path, lambda w, h: (0, 0, w, h), 8)):
        with pytest.raises(InputError) as caught:
            read(path)
        seen(caught.value)
        assert str(caught.value).startswith(f"{path}: cannot be read (Image size (3600000000 pixels) exceeds limit")

import os

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset

from kerasgan import reading
from kerasgan.reading import image_size, read_film, read_square, read_with_remark, squared
from kerasgan.sources import load_films

GREY = np.add.outer(np.arange(40), np.arange(30)).astype(np.uint8) * 3


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_formats_give_the_grey_they_hold(tmp_path, suffix, channels):
    path = tmp_path / f"film{suffix}"
    pixels = GREY if channels == 1 else np.dstack([GREY] * 3)
    path.write_bytes(cv2.imencode(suffix, pixels)[1])
    film = read_film(path)
    assert film.dtype == np.uint8 and film.shape == GREY.shape == image_size(path)
    assert np.abs(film.astype(int) - GREY).max() <= (4 if suffix in (".jpg", ".webp") else 0)


def test_alpha_is_ignored(tmp_path):
    rgba = np.dstack([GREY, GREY, GREY, np.full_like(GREY, 7)])
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", rgba)[1])
    np.testing.assert_array_equal(read_film(tmp_path / "a.png"), GREY)
    Image.fromarray(np.dstack([GREY, rgba[..., 3]]), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_film(tmp_path / "la.png"), GREY)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_keep_the_scale_and_not_their_own_range(tmp_path, suffix):
    dark = (GREY.astype(np.uint16) // 8) * 257
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(cv2.imencode(suffix, dark)[1])
    np.testing.assert_array_equal(read_film(path), GREY // 8)


def test_cmyk_and_animation_are_converted_and_named(tmp_path):
    Image.fromarray(np.dstack([GREY] * 3)).convert("CMYK").save(tmp_path / "c.jpg")
    film, remark = read_with_remark(tmp_path / "c.jpg")
    assert film.shape == GREY.shape and "CMYK" in remark
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    film, remark = read_with_remark(tmp_path / "a.gif")
    assert "first of 2" in remark and np.abs(film.astype(int) - GREY).max() < 8
    frames = [Image.fromarray(frame.astype(np.uint16) * 257) for frame in (GREY, 255 - GREY)]
    frames[0].save(tmp_path / "deep.tif", save_all=True, append_images=frames[1:])
    film, remark = read_with_remark(tmp_path / "deep.tif")
    assert "first of 2" in remark
    np.testing.assert_array_equal(film, GREY)
    frames = [Image.fromarray(GREY.astype(np.float32))] * 2
    frames[0].save(tmp_path / "float.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="float32; save the image with 8 or 16 bit"):
        read_film(tmp_path / "float.tif")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"[.ShellClassInfo]\r\n", "not an image"),
        (cv2.imencode(".png", GREY)[1].tobytes()[:90], "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "film.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_film(path)


def test_bombs_are_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="limit is 100,000,000"):
        read_film(tmp_path / "bomb.png")


def dicom(path, pixels, photometric="MONOCHROME2", **facts):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PhotometricInterpretation, data.PixelData = photometric, pixels.tobytes()
    for name, value in facts.items():
        setattr(data, name, value)
    data.save_as(path)
    return path


def test_no_program_is_run_on_a_film(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    page = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_text(page)
    for read in (read_film, image_size):
        with pytest.raises(ValueError, match="not an image"):
            read(tmp_path / "x.png")
    assert not (tmp_path / "was-run").exists()


def test_long_strips_are_read_or_refused_but_break_nothing(tmp_path):
    Image.fromarray(np.full((1, 2**20 + 1), 7, np.uint8)).save(tmp_path / "strip.bmp")
    image, _ = read_square(tmp_path / "strip.bmp", 16)
    assert (image == 7).all()
    with pytest.raises(ValueError, match="refused: padded to a square"):
        read_square(tmp_path / "strip.bmp", 16, "pad")


def test_dicom_by_window_and_by_bits(tmp_path):
    pixels = (GREY.astype(np.uint16) * 8).astype("<u2")
    whole = read_film(dicom(tmp_path / "a.dcm", pixels))
    np.testing.assert_allclose(whole, pixels / 4095 * 255, atol=0.51)
    window = read_film(dicom(tmp_path / "b.dcm", pixels, WindowCenter=800, WindowWidth=400))
    assert window[pixels <= 600].max() == 0 and window[pixels >= 1000].min() >= 254
    inverted = read_film(dicom(tmp_path / "c", pixels, "MONOCHROME1"))
    np.testing.assert_allclose(inverted.astype(int), 255 - whole.astype(int), atol=1)
    assert image_size(tmp_path / "c") == GREY.shape


def test_dicom_with_odd_tags_is_read_or_refused(tmp_path):
    pixels = (GREY.astype("<u2") * 16).astype("<u2")
    plain = read_film(dicom(tmp_path / "a.dcm", pixels))
    half = dicom(tmp_path / "b.dcm", pixels, RescaleSlope=2)  # pydicom rescales by both or not
    np.testing.assert_array_equal(read_film(half), plain)
    empty = dicom(tmp_path / "c.dcm", pixels, VOILUTSequence=[])
    np.testing.assert_array_equal(read_film(empty), plain)
    with pytest.raises(ValueError, match="cannot be read"):
        read_film(dicom(tmp_path / "d.dcm", pixels, RescaleSlope=None, RescaleIntercept=0))
    with pytest.raises(ValueError, match="look at its RescaleSlope"):
        read_film(dicom(tmp_path / "e.dcm", pixels, RescaleSlope=0, RescaleIntercept=0))


def test_dicom_of_a_table_of_16_bit_colour_and_palettes(tmp_path):
    pixels = np.arange(0, 4096, 64, dtype="<u2").reshape(8, 8)
    plain = read_film(dicom(tmp_path / "a.dcm", pixels))
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table["LUTDescriptor"].VR = "US"
    table.add_new("LUTData", "OW", (np.arange(4096, dtype="<u2") * 16).tobytes())
    mapped = read_film(dicom(tmp_path / "b.dcm", pixels, ModalityLUTSequence=[table]))
    np.testing.assert_allclose(mapped, plain, atol=1)
    facts = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsStored": 16, "HighBit": 15}
    deep = np.repeat(pixels[..., None], 3, axis=2) * 16
    facts["PixelData"] = deep.astype("<u2").tobytes()
    path = dicom(tmp_path / "c.dcm", pixels, "RGB", **facts)
    for film in (read_film(path), read_square(path, 8)[0]):
        assert film.dtype == np.uint8
        np.testing.assert_allclose(film, plain, atol=1)
    with pytest.raises(ValueError, match="palette"):
        read_film(dicom(tmp_path / "d.dcm", pixels, "PALETTE COLOR"))


def test_16_bit_where_white_is_0_are_inverted(tmp_path):
    ramp = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "black.tif")
    Image.fromarray(ramp).save(tmp_path / "white.tif", tiffinfo={262: 0})
    black, (white, remark) = (
        read_film(tmp_path / "black.tif"),
        read_with_remark(tmp_path / "white.tif"),
    )
    np.testing.assert_array_equal(white, 255 - black)
    assert "inverted" in remark


def test_dicom_of_many_frames_and_deflated_ones(tmp_path):
    pixels = GREY.astype("<u2")
    two = np.stack([pixels, 4095 - pixels])
    path = dicom(tmp_path / "two.dcm", pixels, NumberOfFrames=2, PixelData=two.tobytes())
    film, remark = read_with_remark(path)
    np.testing.assert_array_equal(film, read_film(dicom(tmp_path / "one.dcm", pixels)))
    assert remark == "first of 2 frames"
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "bomb.dcm")
    for read in (read_film, image_size):
        with pytest.raises(ValueError, match="refused: a deflated DICOM"):
            read(tmp_path / "bomb.dcm")


def test_dicom_without_an_ending_is_found_in_class_folders(tmp_path):
    for kind in "ab":
        (tmp_path / kind).mkdir()
        for i in range(3):
            dicom(tmp_path / kind / f"IM{i}", GREY.astype("<u2"))
        (tmp_path / kind / "README").write_text("not a film")
    films = load_films(tmp_path, size=16)
    assert len(films) == 6 and films.images.shape == (6, 16, 16, 1)
    assert [why for _, why in films.skipped] == ["not an image"] * 2


def test_damaged_dicom_is_refused(tmp_path):
    path = dicom(tmp_path / "a.dcm", GREY.astype("<u2"))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="cannot be read"):
        read_film(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a DICOM"):
        read_film(path)
    big = dicom(tmp_path / "big.dcm", GREY.astype("<u2"), Rows=20_000, Columns=20_000)
    with pytest.raises(ValueError, match="refused"):
        read_film(big)


def test_the_limit_is_what_the_documentation_says():
    assert reading.MAX_PIXELS == 100_000_000


def area_means(image, size, fit):
    """Exact means of areas: every pixel repeated `size` times, then whole blocks averaged."""
    if fit == "pad":
        side = max(image.shape)
        before = [(side - n) // 2 for n in image.shape]
        after = [side - n - b for n, b in zip(image.shape, before, strict=True)]
        image = np.pad(image, list(zip(before, after, strict=True)))
    for axis in (0, 1):
        n = image.shape[axis]
        image = np.moveaxis(image.repeat(size, axis), axis, 0)
        image = np.moveaxis(image.reshape(size, n, *image.shape[1:]).mean(1), 0, axis)
    return image


@pytest.mark.parametrize("shape", [(523, 600), (301, 257), (140, 900), (2070, 1029), (90, 70)])
@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_square_holds_the_means_of_areas(tmp_path, shape, fit, suffix):
    rng, path = np.random.default_rng(0), tmp_path / f"film{suffix}"
    film = (
        rng.normal(0, 8, shape) + 60 + 130 * np.add.outer(*(np.linspace(0, 0.5, n) for n in shape))
    )
    film[-60:, -60:] += 60  # something at the far corner
    path.write_bytes(cv2.imencode(suffix, film.clip(0, 255).astype(np.uint8))[1])
    image, remark = read_square(path, 16, fit)
    error = image - area_means(read_film(path).astype(float), 16, fit)
    assert image.dtype == np.uint8 and image.shape == (16, 16) and not remark
    assert np.abs(error).max() <= 2.5 and abs(error.mean()) < 0.3
    np.testing.assert_array_equal(squared(read_film(path), 16, fit).shape, (16, 16))


def test_a_square_of_a_colour_jpeg_is_its_luminance_not_turned(tmp_path):
    colour = np.zeros((160, 128, 3), np.uint8)
    colour[:80] = (200, 40, 90)
    image = Image.fromarray(colour)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    square = read_square(tmp_path / "turned.jpg", 16)[0]
    assert abs(int(square[4, 8]) - np.dot((200, 40, 90), (0.299, 0.587, 0.114))) < 3
    assert square[12:].max() < 3


def test_a_film_that_is_not_shrunk_by_blocks_keeps_its_pixels(tmp_path):
    """Else the hash of a collection, and with it every record made of it, would change."""
    colour = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_array_equal(
        read_square(tmp_path / "a.jpg", 64)[0], read_film(tmp_path / "a.jpg")
    )

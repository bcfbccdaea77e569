"""Reading one image file, whatever its kind, as grey uint8 pixels."""

import warnings
from pathlib import Path

import cv2
import numpy as np
from scipy import sparse

MAX_PIXELS = 100_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".gif")
FITS = ("squash", "pad")
# Of Pillow's other readers one, of PostScript, would run a program on what the file says.
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "DIB", "WEBP", "GIF")
_BLOCKS = 4  # of an image that is shrunk in steps, a pixel is at least so many blocks wide
_REDUCED = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}
cv2.utils.logging.setLogLevel(0)  # damaged files are named by an error, not by OpenCV on stderr


def read_film(path):
    """Reads an image file as grey pixels.

    Colour becomes luminance, an alpha channel is ignored, 16 bit are divided by 257: the scale of
    a film is information, so no film is stretched by its own range. Of an animated file the first
    frame is read. DICOM films get their modality and window transforms; MONOCHROME1 is inverted.

    Args:
        path: JPEG, PNG, TIFF, BMP, WebP, GIF or DICOM file.

    Returns:
        uint8 array (h, w).

    Raises:
        ValueError: If the file is empty, damaged, no image, or of `MAX_PIXELS` or more, with the
            reason.
        OSError: If it cannot be read.
    """
    return read_with_remark(path)[0]


def read_square(path, size, fit="squash"):
    """Reads an image file as a square of one size, much faster than `read_film` and `squared`.

    Of a large JPEG only blocks of 8 x 8, 4 x 4 or 2 x 2 pixels are decoded, of which its first
    coefficients hold the means, or nearly.

    Args:
        path: As in `read_film`.
        size: Side of the square in pixels.
        fit: As in `squared`.

    Returns:
        `(uint8 array (size, size), remark)`; the remark says what was unusual, or is empty.

    Raises:
        ValueError, OSError: As `read_film`.
    """
    image, remark, shape = _read(path, size)
    return squared(image, size, fit, shape), remark


def squared(image, size, fit="squash", shape=None):
    """Averages the areas of an image into a square.

    Args:
        image: uint8 (h, w).
        size: Side of the square in pixels.
        fit: `"squash"` ignores the aspect; `"pad"` keeps it and fills with black.
        shape: The film's own (height, width), where `image` holds means of its blocks.

    Returns:
        uint8 (size, size). Of large images means of blocks of pixels are averaged, four blocks or
        more a side: a hard edge may come out a few grey levels from the exact mean.

    Raises:
        ValueError: If an image to be padded is so long that its square has `MAX_PIXELS`.
    """
    shape = shape or image.shape
    if fit == "pad" and max(shape) ** 2 >= MAX_PIXELS:
        raise ValueError(
            f"refused: padded to a square, {shape[1]} x {shape[0]} pixels are beyond the limit of "
            f"{MAX_PIXELS:,}; crop the image, or squash it"
        )
    while min(image.shape) >= 2 * _BLOCKS * size:
        image = _halved(image)
    side = max(shape)
    before = [(side - n) // 2 if fit == "pad" else 0 for n in shape]
    spans = [side if fit == "pad" else n for n in shape]
    if image.shape == shape:
        above, left = before
        square = np.zeros(spans, np.uint8)
        square[above : above + shape[0], left : left + shape[1]] = image
        if square.shape == (size, size):
            return square
        return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
    places = zip(shape, image.shape, before, spans, strict=True)
    rows, columns = (_area_weights(*place, size) for place in places)
    image = image.astype(np.float32, copy=False)
    return np.rint((columns @ (rows @ image).T).T).astype(np.uint8)


def _halved(image):
    """Means of 2 x 2 pixels; of an odd side the last row or column stands for itself."""
    height, width = image.shape
    if height % 2 or width % 2:
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    half = (image.shape[1] // 2, image.shape[0] // 2)
    # From here on not rounded; the first halving, by far the largest, stays in bytes.
    return cv2.resize(image, half, interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)


def _area_weights(length, blocks, before, span, size):
    """Shares (size, blocks) of blocks in cells; of `span` pixels in all, `before` are black."""
    block, cell = 2.0 ** np.rint(np.log2(length / blocks)), span / size
    edges = np.minimum(np.arange(blocks + 1) * block, length) + before
    # Each block lies in one cell, or in one and the next.
    first = np.minimum(edges[:-1] // cell, size - 1).astype(int)
    until = np.minimum((first + 1) * cell, edges[1:])
    cells = np.concatenate([first, np.minimum(first + 1, size - 1)])
    shares = np.concatenate([until - edges[:-1], edges[1:] - until]) / cell
    places = cells, np.tile(np.arange(blocks), 2)
    # Sparse: a dense product would wake BLAS' threads.
    return sparse.csr_array((shares.astype(np.float32), places), shape=(size, blocks))


def read_with_remark(path):
    """Reads as `read_film` does; returns the pixels and what was unusual, or an empty string."""
    return _read(path)[:2]


def _read(path, size=None):
    """Returns pixels, or for a `size` perhaps means of blocks of them, remark, (height, width)."""
    path = Path(path)
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    if is_dicom(path):
        image, remark = _read_dicom(path)
        return image, remark, image.shape
    height, width, mode, frames, kind, inverted = _header(path)
    if height * width >= MAX_PIXELS:
        raise ValueError(f"refused: {width} x {height} pixels, the limit is {MAX_PIXELS:,}")
    if inverted:
        return 255 - _read_pillow(path), "white was 0, inverted", (height, width)
    if mode == "CMYK" or frames > 1:
        remark = "CMYK, converted to grey" if mode == "CMYK" else f"first of {frames} frames"
        return _read_pillow(path), remark, (height, width)
    how, blocks = cv2.IMREAD_UNCHANGED, min(height, width) // (size * _BLOCKS) if size else 0
    if kind == "JPEG" and blocks >= 2:
        # A turned camera's note is passed over, as by IMREAD_UNCHANGED.
        largest = next(side for side in _REDUCED if side <= blocks)
        how = _REDUCED[largest] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), how)
    except cv2.error:  # it takes no side of 2^20 pixels
        image = None
    image = _read_pillow(path) if image is None else _to_grey(image)
    return image, "", (height, width)


def image_size(path):
    """Returns (height, width) of an image file from its header, without decoding it.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no image.
    """
    path = Path(path)
    if is_dicom(path):
        return _dicom(path, stop_before_pixels=True)[1]
    return _header(path)[:2]


def _header(path):
    from PIL import Image

    try:
        with warnings.catch_warnings():  # Pillow warns of large images; they are refused below
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                width, height = image.size
                # Tag 262, what 0 means: decoders invert such films of 8 bit, but not of 16.
                white_is_0 = image.format == "TIFF" and image.tag_v2.get(262) == 0
                inverted = white_is_0 and image.mode.startswith("I;16")
                facts = image.mode, getattr(image, "n_frames", 1), image.format, inverted
                return height, width, *facts
    except Image.DecompressionBombError:
        raise ValueError(f"refused: the limit is {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow raises many kinds, some bare, for damaged files
        raise ValueError(f"not an image, or a damaged one ({type(error).__name__})") from None


def _read_pillow(path):
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            mode = image.mode  # of 16 bit or more, which Pillow would cut off at 255, if I or F
            pixels = np.asarray(image if mode[0] in "IF" else image.convert("L"))
    except Exception as error:
        raise ValueError(f"damaged or cut off ({type(error).__name__})") from None
    return _to_grey(pixels.astype(np.uint16) if mode.startswith("I;16") else pixels)


def _to_grey(image):
    if image.dtype == np.uint16:
        image = np.rint(image / 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"pixels of type {image.dtype}; save the image with 8 or 16 bit")
    if image.ndim == 2:
        return image
    if image.shape[2] < 3:  # grey with alpha
        return np.ascontiguousarray(image[..., 0])
    return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_BGR2GRAY)


def is_dicom(path):
    """Tells whether a file is a DICOM one, by its ending `.dcm` or, without it, its first bytes.

    Args:
        path: The file, a `Path`.

    Raises:
        OSError: If it cannot be read.
    """
    if path.suffix.lower() == ".dcm":
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _dicom(path, **options):
    import pydicom

    try:
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        deflated = syntax == pydicom.uid.DeflatedExplicitVRLittleEndian
        data = None if deflated else pydicom.dcmread(path, **options)
        shape = (0, 0) if deflated else (int(data.Rows), int(data.Columns))
    except Exception as error:
        raise ValueError(f"not a DICOM image, or a damaged one ({type(error).__name__})") from None
    if deflated:  # pydicom unpacks all of it before a size can be seen
        raise ValueError("refused: a deflated DICOM file; save it with another transfer syntax")
    if shape[0] * shape[1] >= MAX_PIXELS:
        raise ValueError(f"refused: {shape[1]} x {shape[0]} pixels, the limit is {MAX_PIXELS:,}")
    return data, shape


def _read_dicom(path):
    """The first frame after modality and window transforms, scaled to 8 bit by the range of these.

    Returns it and what was unusual, as `read_with_remark`.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

    _dicom(path, stop_before_pixels=True)
    data, _ = _dicom(path)
    try:
        frames = int(data.get("NumberOfFrames", 1) or 1)
        remark = f"first of {frames} frames" if frames > 1 else ""
        pixels = pixel_array(data, index=0)  # no other frame is decoded
        if data.PhotometricInterpretation == "PALETTE COLOR":
            raise ValueError("a palette of colours; save it as grey")
        if data.get("SamplesPerPixel", 1) > 1:
            return _to_grey(pixels[..., 2::-1]), remark
        values = apply_voi_lut(apply_modality_lut(pixels, data), data).astype(float)
        low, high = _dicom_range(data)
        if not low < high:
            raise ValueError(f"its values range from {low} to {high}: look at its RescaleSlope")
    except Exception as error:
        raise ValueError(f"DICOM pixels cannot be read ({type(error).__name__}: {error})") from None
    grey = np.clip((values - low) / (high - low), 0, 1)
    if data.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return np.rint(grey * 255).astype(np.uint8), remark


def _dicom_range(data):
    """The range of values the stored bits, or the look-up table, can take after rescaling."""
    for table in ("VOILUTSequence", "ModalityLUTSequence"):  # the last one applied
        if data.get(table):
            return 0, 2 ** int(data[table].value[0].LUTDescriptor[2]) - 1
    bits, signed = int(data.BitsStored), int(data.PixelRepresentation)
    limits = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    if "RescaleSlope" in data and "RescaleIntercept" in data:  # else pydicom does not rescale
        limits = limits * float(data.RescaleSlope) + float(data.RescaleIntercept)
    return limits.min(), limits.max()

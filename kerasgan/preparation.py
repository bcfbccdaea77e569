"""Preparation: raw films of any size and kind become square grey PNG files of one size."""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from kerasgan.films import check_size, stored_paths, write_index
from kerasgan.reading import read_with_remark

FITS = ("squash", "pad")


def prepare(films, folder, size=64, fit="squash", workers=None):
    """Writes films as square grey PNG files of one size, with an index.

    Files that cannot be read are passed over and named in `skipped`; files already prepared are
    kept, so a call that was stopped goes on where it was.

    Args:
        films: The raw `Films`.
        folder: The folder of the prepared collection, made if missing.
        size: Side in pixels, a power of two from 16 to 256.
        fit: `"squash"` ignores the aspect, as the reference study did; `"pad"` keeps it and fills
            with black. Both average areas.
        workers: Threads; all processors by default.

    Returns:
        The prepared `Films`.

    Raises:
        ValueError: If `size` or `fit` is out of range, or a class is left without a film.
        OSError: If the folder cannot be written; what is finished stays.

    Example:
        >>> films = prepare(load_films("covid-xray-original"), "films-64", size=64, fit="pad")
    """
    check_size(size)
    if fit not in FITS:
        raise ValueError(f"fit must be one of {FITS}. Received: fit={fit!r}")
    folder = Path(folder).expanduser().resolve()
    paths = stored_paths(films, folder)
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    in_memory = films.images if (films.index["path"] == "").any() else None
    jobs = (
        delayed(_prepare_one)(
            source, target, size, fit, None if in_memory is None else in_memory[i, ..., 0]
        )
        for i, (source, target) in enumerate(zip(films.index["path"], paths, strict=True))
    )
    threads = workers or os.cpu_count()
    done = Parallel(n_jobs=threads, backend="threading", return_as="generator")(jobs)
    remarks = list(tqdm(done, total=len(paths), desc="preparing films", unit="film"))
    return _collected(films, folder, paths, remarks, size, fit)


def _prepare_one(source, target, size, fit, pixels=None):
    """Prepares one film; returns (is there, remark)."""
    if target.exists():
        return True, ""
    try:
        image, remark = (pixels, "") if pixels is not None else read_with_remark(source)
    except (ValueError, OSError) as error:
        return False, str(error)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(cv2.imencode(".png", _resized(image, size, fit))[1])
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return True, remark


def _resized(image, size, fit):
    height, width = image.shape
    if fit == "pad":
        side = max(height, width)
        above, left = (side - height) // 2, (side - width) // 2
        square = np.zeros((side, side), np.uint8)
        square[above : above + height, left : left + width] = image
        image = square
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _collected(films, folder, paths, remarks, size, fit):
    index = films.index.assign(path=[str(path) for path in paths])
    names = films.index["filename"]
    notes = [(name, why) for name, (_, why) in zip(names, remarks, strict=True) if why]
    index["filename"] = [path.name for path in paths]
    index = index[[there for there, _ in remarks]].reset_index(drop=True)
    if lost := set(films.classes) - set(index["class"]):
        reasons = "; ".join(f"{name}: {why}" for name, why in notes[:3])
        raise ValueError(f"no film of {sorted(lost)} could be read ({reasons}); add readable films")
    prepared = replace(films, index=index, size=size, skipped=(*films.skipped, *notes), _pixels={})
    write_index(prepared, folder, fit=fit)
    return prepared

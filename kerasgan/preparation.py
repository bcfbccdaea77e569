"""Preparation: raw films of any size and kind become square grey PNG files of one size."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import cv2
from tqdm import tqdm

from kerasgan.films import (
    UNFINISHED,
    check_size,
    mark_unfinished,
    stored_paths,
    write_about,
    write_index,
)
from kerasgan.reading import FITS, image_size, read_square, squared
from kerasgan.runs import absolute, read_json, short_hash, write_bytes


def prepare(films, folder, size=64, fit="squash", workers=None):
    """Writes films as square grey PNG files of one size, with an index.

    Files that cannot be read are passed over and named in `skipped`; those that had to be converted
    (CMYK, the first frame of several) are named as they are. Files already prepared are kept, so a
    call that was stopped goes on where it was.

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
        ValueError: If `size` or `fit` is out of range, a class is left without a film, or the
            folder holds the raw films, or others than these, which would be overwritten.
        OSError: If the folder cannot be written; what is finished stays.

    Example:
        >>> films = prepare(load_films("covid-xray-original"), "films-64", size=64, fit="pad")
    """
    check_size(size)
    if fit not in FITS:
        raise ValueError(f"fit must be one of {FITS}. Received: fit={fit!r}")
    folder = absolute(folder)
    paths = stored_paths(films, folder)
    sources = _begin(films, folder, paths, size, fit)
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    in_memory = films.images if (films.index["path"] == "").any() else None
    # Threads that are waited for: one left inside OpenCV would abort the process as it ends.
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        pixels = [None] * len(paths) if in_memory is None else in_memory[..., 0]
        done = pool.map(partial(_prepare_one, size, fit), films.index["path"], paths, pixels)
        remarks = list(tqdm(done, total=len(paths), desc="preparing films", unit="film"))
    finally:
        pool.shutdown(cancel_futures=True)
    prepared = _collected(films, folder, paths, remarks, size, fit=fit, sources=sources)
    (folder / UNFINISHED).unlink(missing_ok=True)
    return prepared


def _begin(films, folder, paths, size, fit):
    """Refuses to prepare films in place or over others; notes first of all what is prepared.

    Returns a dict from each prepared file to a mark of its raw film.
    """
    if any(path and folder in absolute(path).parents for path in films.index["path"]):
        raise ValueError(f"{folder} holds the raw films themselves; choose another folder")
    known = {}
    if (folder / "about.json").is_file():
        about = read_json(folder / "about.json", "choose another folder")
        if (there := (about.get("size"), about.get("fit", fit))) != (size, fit):
            raise ValueError(
                f"{folder} holds films of size={there[0]!r}, fit={there[1]!r}; choose another "
                f"folder. Received: size={size}, fit={fit!r}"
            )
        known = about.get("sources") if isinstance(about.get("sources"), dict) else {}
    names = [path.relative_to(folder).as_posix() for path in paths]
    marks = dict(zip(names, _marks(films), strict=True))
    for name in marks.keys() & known.keys():
        if marks[name] != known[name] and (folder / name).is_file():
            raise ValueError(
                f"{folder / name} was prepared from another film of this name: choose another "
                "folder, or delete it"
            )
    if known != marks:
        mark_unfinished(folder)
        write_about(replace(films, size=size, _pixels={}), folder, fit=fit, sources=marks)
    return marks


def _marks(films):
    """Tells raw films of one name apart: the sizes of their files, or hashes of their pixels."""
    if (films.index["path"] == "").any():
        return [short_hash(image.tobytes()) for image in films.images]
    return [os.path.getsize(path) for path in films.index["path"]]


def _prepare_one(size, fit, source, target, pixels):
    """Prepares one film; returns (is there, remark)."""
    if target.exists():
        try:
            there = image_size(target)
        except ValueError:
            there = None
        if there != (size, size):
            raise ValueError(
                f"{target} is damaged, or no film of {size} x {size} pixels: delete it, or choose "
                "another folder"
            )
        return True, ""
    try:
        if pixels is None:
            image, remark = read_square(source, size, fit)
        else:
            image, remark = squared(pixels, size, fit), ""
    except (ValueError, OSError) as error:
        return False, str(error)
    write_bytes(target, cv2.imencode(".png", image)[1].tobytes())
    return True, remark


def _collected(films, folder, paths, remarks, size, **facts):
    index = films.index.assign(path=[str(path) for path in paths])
    names = films.index["class"] + "/" + films.index["filename"]
    named = list(zip(names, remarks, strict=True))
    notes = [(name, why) for name, (there, why) in named if not there]
    for name, why in ((name, why) for name, (there, why) in named if there and why):
        print(f"converted {name}: {why}")
    index["filename"] = [path.name for path in paths]
    index = index[[there for there, _ in remarks]].reset_index(drop=True)
    if lost := set(films.classes) - set(index["class"]):
        reasons = "; ".join(f"{name}: {why}" for name, why in notes[:3])
        raise ValueError(f"no film of {sorted(lost)} could be read ({reasons}); add readable films")
    prepared = replace(films, index=index, size=size, skipped=(*films.skipped, *notes), _pixels={})
    write_index(prepared, folder, **facts)
    return prepared

"""Preparation: raw films of any size and kind become square grey PNG files of one size."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
from tqdm import tqdm

from kerasgan.films import (
    UNFINISHED,
    check_size,
    inner_path,
    mark_unfinished,
    refuse_foreign,
    replaced_files,
    stored_paths,
    write_about,
    write_index,
)
from kerasgan.reading import FITS, image_size, read_film, read_square, squared
from kerasgan.runs import absolute, read_json, short_hash, write_bytes
from kerasgan.sources import refuse_inside


def prepare(films, folder, size=64, fit="squash", workers=None):
    """Writes films as square grey PNG files of one size, with an index.

    Files that cannot be read are passed over and named in `skipped`; those that had to be converted
    (CMYK, the first frame of several) are named as they are. Files already prepared are kept, so a
    call that was stopped goes on where it was. Prepared films that are not of these are taken away.

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
    sources, replaced, doubtful = _begin(films, folder, paths, size, fit)
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    in_memory = films.images if (films.index["path"] == "").any() else None
    # Threads that are waited for: one left inside OpenCV would abort the process as it ends.
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        pixels = [None] * len(paths) if in_memory is None else in_memory[..., 0]
        prepare_one = partial(_prepare_one, size, fit, doubtful)
        done = pool.map(prepare_one, films.index["path"], paths, pixels)
        remarks = list(tqdm(done, total=len(paths), desc="preparing films", unit="film"))
    finally:
        pool.shutdown(cancel_futures=True)
    prepared = _collected(films, folder, paths, remarks, size, fit=fit, sources=sources)
    for path in replaced - set(paths):
        path.unlink(missing_ok=True)
    (folder / UNFINISHED).unlink(missing_ok=True)
    return prepared


def _begin(films, folder, paths, size, fit):
    """Refuses to prepare films in place or over others; notes first of all what is prepared.

    Returns a dict from each prepared file to a mark of its raw film; the files prepared before; and
    those of them whose raw film was written since.
    """
    if any(path and folder in absolute(path).parents for path in films.index["path"]):
        raise ValueError(f"{folder} holds the raw films themselves; choose another folder")
    refuse_inside(folder, films)
    refuse_foreign(folder)
    known, before = {}, []
    if (folder / "about.json").is_file():
        about = read_json(folder / "about.json", "choose another folder")
        if (there := (about.get("size"), about.get("fit", fit))) != (size, fit):
            raise ValueError(
                f"{folder} holds films of size={there[0]!r}, fit={there[1]!r}; choose another "
                f"folder. Received: size={size}, fit={fit!r}"
            )
        if not isinstance(known := about.get("sources"), dict):
            raise ValueError(f"{folder} holds a set of other films; choose another folder")
    if (folder / UNFINISHED).is_file():
        before = replaced_files(folder, "choose another folder")
    names = [path.relative_to(folder).as_posix() for path in paths]
    # Whatever their splits: these may have been made anew.
    earlier = {tuple(str(name).split("/")[-2:]) for name in known}
    if known and earlier.isdisjoint(path.parts[-2:] for path in paths):
        raise ValueError(
            f"{folder} holds films prepared from others, such as {next(iter(known))}; choose "
            "another folder"
        )
    marks = dict(zip(names, _marks(films), strict=True))
    other = [name for name in marks if name in known and marks[name] != known[name]]
    other = {name: folder / name for name in other if (folder / name).is_file()}
    replaced = {folder / inner_path(str(name)) for name in (*known, *before)}
    noted = marks | {name: known[name] for name in other}  # until they have been looked at
    if known != noted:
        mark_unfinished(folder, replaced)
        write_about(replace(films, size=size, _pixels={}), folder, fit=fit, sources=noted)
    return marks, replaced, set(other.values())


def _marks(films):
    """Tells raw films of one name apart: sizes and times of files, or hashes of their pixels."""
    if (films.index["path"] == "").any():
        return [short_hash(image.tobytes()) for image in films.images]
    facts = map(os.stat, films.index["path"])
    return [[fact.st_size, fact.st_mtime_ns] for fact in facts]


def _prepare_one(size, fit, doubtful, source, target, pixels):
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
        if target in doubtful and not (pixels is None and _made_of(target, size, fit, source)):
            raise ValueError(
                f"{target} was prepared from another film of this name: choose another folder, or "
                "delete it"
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


def _made_of(target, size, fit, source):
    """Whether a prepared film is what its raw one gives today, but for a decoder's rounding."""
    try:
        image = read_square(source, size, fit)[0].astype(float)
    except (ValueError, OSError):
        return False
    return np.abs(image - read_film(target)).mean() < 1


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

"""Where films come from: named collections with pinned downloads, any folder, simulated films."""

import hashlib
import os
import re
import urllib.parse
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd

from kerasgan.films import (
    COLUMNS,
    TABLES,
    UNFINISHED,
    Films,
    check_distinct,
    check_size,
    inner_path,
)
from kerasgan.reading import SUFFIXES, image_size, is_dicom
from kerasgan.runs import absolute, read_json, write_text

_GITHUB = "https://raw.githubusercontent.com"
COLLECTIONS = {
    "covid-xray-64": f"{_GITHUB}/SimoneRosset/AUGMENTATION_GAN/"
    "61e7f717269171975c3f6764f14462ecf9d0f1a8/custom_covid_dataset",
    "covid-xray-original": f"{_GITHUB}/vj2050/Transfer-Learning-COVID-19/"
    "603146502003a928360980c4b61bb27eed59fb5d/dataset_4_classes",
}
DEFAULT = "covid-xray-64"
_SPLITS = {  # names of split folders, and the splits they are
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
PATIENCE = (4, 8)  # seconds for a connection, and for an answer
NOT_LISTED = "an image that is not in the index"
_NO_IMAGE = "not an image"
_REMEDY = (
    "set KERASGAN_DATA to a folder that holds it, connect to the network, or choose DATA=simulated"
)


class Unavailable(OSError):
    """A named collection that is neither on this machine nor to be downloaded."""


def load_films(source="auto", size=None, patient_pattern=None, test_share=0.2, seed=0, keep=True):
    """Finds a collection and returns its films; pixels are read later.

    Args:
        source: `"auto"`: the default collection, or simulated films where it cannot be had;
            `"simulated"`; the name of a collection, `"covid-xray-64"` or
            `"covid-xray-original"`; or the path of a folder `split/class/*` or `class/*`, where a
            split is `train` (or `training`), `test` (`testing`) or `val` (`valid`, `validation`).
            Collections are looked for under the root `KERASGAN_DATA`, in the cache
            (`KERASGAN_HOME`, else the platform's), and downloaded.
        size: Side in pixels the films are resized to when read; `None` keeps their own.
        patient_pattern: For films of a folder whose patient is not known: regular expression on
            the file name's stem whose first group, or whole match, is the patient.
        test_share: Share of films for the test split of a folder without splits, above 0 and at
            most 0.5; rounded to one in so many.
        seed: Integer seed of that split, and of simulated films.
        keep: Whether that split is kept in the folder, as `index.csv`.

    Returns:
        `Films`; their `note` says when they are simulated. Why is printed.

    Raises:
        FileNotFoundError: If the folder is missing or holds no class folders with films.
        Unavailable: If a named collection cannot be had.
        ValueError: If the folder's index or classes are not usable, or the pattern is none.
    """
    try:
        re.compile(patient_pattern or "")
    except re.error as error:
        raise ValueError(
            f"patient_pattern {patient_pattern!r} is no regular expression: {error}"
        ) from None
    if size is not None:
        check_size(size)
    if patient_pattern and source in ("auto", "simulated", *COLLECTIONS):
        raise ValueError(f"a pattern of patients is for folders of your own. Received: {source!r}")
    if source == "auto":
        try:
            return _collection(DEFAULT, size)
        except Unavailable as error:
            reason = f"SIMULATED FILMS, not patients: {DEFAULT} could not be had"
            print(f"{reason} ({error})")
            return _simulated(size, seed, reason)
    if source == "simulated":
        return _simulated(size, seed, "SIMULATED FILMS, not patients, as was asked for")
    if source in COLLECTIONS:
        return _collection(source, size)
    return _folder(absolute(source), size, patient_pattern, test_share, seed, keep)


def _simulated(size, seed, note):
    from kerasgan.phantom import simulate_films

    films = simulate_films(size=size or 64, seed=seed)
    return replace(films, name="simulated", note=note)


def manifest(name):
    """Returns the manifest of a named collection.

    Args:
        name: Name in `COLLECTIONS`.

    Returns:
        DataFrame `split, class, filename, patient, sha256`, one row per film.
    """
    path = Path(__file__).parent / "manifests" / f"{name}.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _collection(name, size):
    table = manifest(name)
    if root := os.environ.get("KERASGAN_DATA"):
        folder = absolute(root) / name
        if folder.is_dir():
            films = _listed(folder, table, name, size)
            if other := _unlike(table, films.index["path"]):
                raise ValueError(
                    f"{len(other)} films in {folder} are not those of the collection, first "
                    f"{other[0]}: restore them, or give the folder's path in place of {name}"
                )
            return films
    cache = _cache() / name
    if unlike := _unlike(table, [cache / path for path in _paths(table)]):
        _download(name, table, cache, set(unlike))
    return _listed(cache, table, name, size)


def _unlike(table, paths):
    """The paths of a manifest's films that are missing or have another hash."""

    def fits(path, digest):
        try:
            return hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
        except OSError:
            return False

    with ThreadPoolExecutor() as pool:
        good = pool.map(fits, paths, table["sha256"])
    return [path for path, fit in zip(paths, good, strict=True) if not fit]


def _cache():
    import pooch

    return absolute(os.environ.get("KERASGAN_HOME") or pooch.os_cache("kerasgan"))


def _paths(table, folder=None):
    """The paths of an index's films inside its folder, never outside it.

    A `folder` without split folders keeps its films in class folders alone.
    """
    if folder is not None and not any((folder / split).is_dir() for split in set(table["split"])):
        table = table.assign(split="")
    rows = table[["split", "class", "filename"]].itertuples(index=False)
    paths = [inner_path(*parts) for parts in rows]
    check_distinct(paths)
    return paths


def _download(name, table, folder, unlike):
    """Fetches the films of `_unlike`, checked by hash; one probe finds a dead network."""
    import pooch
    from joblib import Parallel, delayed
    from tqdm import tqdm

    base = os.environ.get("KERASGAN_URL", COLLECTIONS[name]).rstrip("/")
    wanted = [
        (path, digest)
        for path, digest in zip(_paths(table), table["sha256"], strict=True)
        if folder / path in unlike
    ]

    def fetch(path, digest):
        url = f"{base}/{urllib.parse.quote(path.as_posix())}"
        target = folder / path
        try:
            pooch.retrieve(
                url,
                f"sha256:{digest}",
                fname=target.name,
                path=target.parent,
                downloader=pooch.HTTPDownloader(timeout=PATIENCE),
            )
        except Exception as error:  # requests, urllib3 and pooch each have their own kinds
            target.unlink(missing_ok=True)
            return f"{url}: {_brief(error)}"
        return None

    pooch.get_logger().setLevel("WARNING")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"the cache {folder} cannot be written: {error}; set KERASGAN_HOME"
        ) from None
    failed = fetch(*wanted[0])
    if failed:
        raise Unavailable(f"{failed}; {_REMEDY}")
    jobs = (delayed(fetch)(*job) for job in wanted[1:])
    done = Parallel(n_jobs=8, backend="threading", return_as="generator")(jobs)
    bar = tqdm(done, total=len(wanted) - 1, desc=f"downloading {name}", unit="film")
    if failures := [failure for failure in bar if failure]:
        raise Unavailable(
            f"{len(failures)} of {len(wanted)} films failed, first {failures[0]}; the others are "
            f"kept: try again, or {_REMEDY}"
        )


def _brief(error):
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if len(text) < 200 else f"{type(error).__name__}: {text[:160]}..."


def _listed(folder, table, name, size):
    """Films of a folder by a table; missing ones are an error, others named."""
    paths = [folder / path for path in _paths(table, folder)]
    missing = [str(path.relative_to(folder)) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(paths)} films of its index, first "
            f"{missing[0]}; restore them, or remove them from the index"
        )
    about = _about(folder)
    known = {path.resolve() for path in paths}
    extra = [path for path in _files(folder) if path.resolve() not in known]
    reasons = [NOT_LISTED if _is_image(path) else _NO_IMAGE for path in extra]
    skipped = [(str(x.relative_to(folder)), why) for x, why in zip(extra, reasons, strict=True)]
    index = table.assign(path=[str(path.resolve()) for path in paths])
    if "patient" not in index:
        index["patient"] = ""
    return _films(index, about.get("name", name), size, skipped, about)


def _films(index, name, size, skipped, about=None):
    about = about or {}
    index = index[list(COLUMNS)].reset_index(drop=True)
    index["split"] = [_SPLITS.get(name.lower(), name) for name in index["split"]]
    classes = tuple(sorted(index["class"].unique()))
    if "macro" in classes:
        raise ValueError("no class may be called macro, as the mean of the classes is: rename it")
    if size is None:
        size = about.get("size") or _common_size(index["path"])
    skipped = (*map(tuple, about.get("skipped", ())), *skipped)
    return Films(index, classes, size, name, about.get("note", ""), skipped)


def _common_size(paths):
    """The side of all films if they are square and equal, else `None`."""
    first = None
    for path in paths:
        try:
            height, width = image_size(path)
        except ValueError:
            return None
        if height != width or (first or height) != height:
            return None
        first = height
    return first


def _about(folder):
    path = folder / "about.json"
    if not path.is_file():
        return {}
    remedy = "delete it or prepare the films again"
    about = read_json(path, remedy)
    size, skipped = about.get("size"), about.get("skipped", [])
    texts = about.get("name", ""), about.get("note", "")
    if not (
        (size is None or type(size) is int and 0 < size <= 10_000)
        and all(isinstance(text, str) for text in texts)
        and isinstance(skipped, list)
        and all(isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in skipped)
    ):
        raise ValueError(f"{path} is damaged; {remedy}")
    return about


def _files(folder):
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not (path.parent == folder and path.name in (*TABLES, "about.json"))
        and not path.name.endswith(".partial")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _folder(folder, size, pattern, test_share, seed, keep):
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}. A source is auto, simulated, "
            f"{', '.join(COLLECTIONS)}, or a folder with one folder of images per class"
        )
    if (folder / UNFINISHED).is_file():
        raise ValueError(f"{folder} is not whole: give the command that fills it once more")
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is not None:
        index = _read_table(table)
    else:
        index, skipped = _scan(folder)
    _paths(index)  # refuses an index that points elsewhere
    classes = sorted(index["class"].unique())
    lower = [name.lower() for name in classes]
    if twins := [name for name in classes if lower.count(name.lower()) > 1]:
        raise ValueError(f"classes differ only in case: {twins}; rename one or merge them")
    if table is not None:
        index = _where_they_lie(index, folder)
    undivided, nameless = (index["split"] == "").all(), (index["patient"] == "").all()
    if undivided:
        index = _with_split(_with_patients(index, pattern), test_share, seed)
        if keep and (unknown := (index["patient"] == "").sum()):
            print(
                f"{folder}: the patients of {unknown} films are not known, so these are split one "
                "by one into training and test films; `python -m kerasgan audit` says more"
            )
    elif pattern and not nameless:
        print(f"{table.name} names patients already: the pattern {pattern!r} is not used")
    elif pattern:
        index = _with_patients(index, pattern)
        sides = index.groupby("patient")["split"].nunique()
        if table is not None and (sides > 1).any():
            raise ValueError(
                f"{table} was split without knowing patients: {sides.idxmax()!r} is on both sides; "
                "delete it, or its column split, and they are split by patient (give notebooks "
                "a new RUN then)"
            )
    if table is not None:
        films = _listed(folder, index, folder.name, size)
    else:
        films = _films(index, folder.name, size, skipped)
    if keep and (undivided or pattern and nameless):
        _keep(index if table is not None else index.drop(columns="path"), folder)
    return films


def refuse_inside(folder, films):
    """Raises `ValueError` if a folder lies in the folder that films were read from.

    `load_films` would take it, and what is in it, for one of the classes.
    """
    folder, roots = absolute(folder), set()
    for path, name, kind in films.index[["path", "filename", "class"]].itertuples(index=False):
        above, home = [*Path(path).parents] if path else [], len(Path(name).parts)
        if len(above) > home and above[home - 1].name == kind:  # the class folder
            split = above[home].name.lower() in _SPLITS
            roots.add(above[min(home + split, len(above) - 1)])
    for root in map(absolute, roots):
        if root in (folder, *folder.parents):
            raise ValueError(
                f"{folder} lies in {root}, the films' own folder, and would be taken for one of "
                "their classes: choose another folder"
            )


def _where_they_lie(index, folder):
    """Takes the splits an index does not name from the split folders its films lie in."""
    tops = [path.name for path in folder.iterdir() if path.name.lower() in _SPLITS]
    if (index["split"] != "").any() or not tops:
        return index
    films = [inner_path(*row) for row in index[["class", "filename"]].itertuples(index=False)]
    homes = [[top for top in tops if (folder / top / film).is_file()] for film in films]
    if not any(homes):
        return index
    if unclear := [film for film, home in zip(films, homes, strict=True) if len(home) != 1]:
        raise ValueError(
            f"the index of {folder} lists {unclear[0]}, which is in none or several of the folders "
            f"{', '.join(sorted(tops))}: give the index a column split, or remove the film from it"
        )
    return index.assign(split=[home[0] for home in homes])


def _read_table(path):
    try:
        with warnings.catch_warnings():  # pandas warns of cells beyond the columns and drops them
            warnings.simplefilter("error")
            index = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path} is not a CSV table: {error}") from None
    if missing := {"class", "filename"} - set(index.columns):
        raise ValueError(f"{path} needs the columns class and filename; it lacks {sorted(missing)}")
    for column in ("split", "patient"):
        if column not in index:
            index[column] = ""
    if not len(index):
        raise ValueError(f"{path} lists no films")
    if nameless := int((index[["class", "filename"]] == "").any(axis=1).sum()):
        raise ValueError(f"{path}: {nameless} rows lack a class or a filename; fill them in")
    if 0 < (index["split"] == "").sum() < len(index):
        raise ValueError(f"{path}: some rows have a split and some none; fill in all or none")
    return index


def _scan(folder):
    """Indexes `split/class/*` or `class/*`: the films, and the files passed over."""
    tops = _folders(folder)
    splits = [path.name for path in tops if path.name.lower() in _SPLITS]
    split = bool(splits)
    if split and len(splits) < len(tops):
        others = [path.name for path in tops if path.name not in splits]
        raise ValueError(
            f"{folder} holds the split folders {', '.join(splits)} beside {', '.join(others)}: "
            "move these elsewhere, or rename a class that is called like a split"
        )
    meant = [_SPLITS[name.lower()] for name in splits]
    if twins := [name for name in splits if meant.count(_SPLITS[name.lower()]) > 1]:
        raise ValueError(f"{folder} has several folders of one split, {twins}: merge them")
    rows, skipped = [], []
    for top in tops:
        for kind in _folders(top) if split else [top]:
            found = 0
            for path in _files(kind):
                if not _is_image(path):
                    skipped.append((str(path.relative_to(folder)), _NO_IMAGE))
                    continue
                where = top.name if split else ""
                name = path.relative_to(kind).as_posix()
                rows.append((str(path.resolve()), name, kind.name, where, ""))
                found += 1
            if not found:
                raise ValueError(
                    f"class folder {kind} holds no films; add some or remove the folder"
                )
    if not rows:
        raise FileNotFoundError(
            f"{folder.resolve()} holds no class folders with images: one folder per class is needed"
        )
    return pd.DataFrame(rows, columns=COLUMNS), skipped


def _folders(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _is_image(path):
    try:  # archives export DICOM films without an ending
        return path.suffix.lower() in SUFFIXES or is_dicom(path)
    except OSError:
        return False


def _with_patients(index, pattern):
    """Takes the patients from the file names, where they are not known."""
    if not pattern:
        return index
    pairs = zip(index["patient"], index["filename"], strict=True)
    return index.assign(patient=[known or _patient(pattern, name) for known, name in pairs])


def _with_split(index, test_share, seed):
    """Adds a split into training and test films: stratified, by patient, a function of the seed."""
    from sklearn.model_selection import StratifiedGroupKFold

    if not 0 < test_share <= 0.5:
        raise ValueError(f"test_share must be above 0 and at most 0.5. Received: {test_share}")
    groups = index["patient"].where(
        index["patient"] != "", index["class"] + "/" + index["filename"]
    )
    people = groups.groupby(index["class"]).nunique()
    if (people < 2).any():
        raise ValueError(
            f"a class needs films of at least two patients to be split. Received: "
            f"{people.to_dict()}; add films, make train/ and test/ folders yourself, or, if the "
            "file names were to tell the patients apart, check the pattern"
        )
    folds = max(2, min(round(1 / test_share), int(people.min())))
    if folds < round(1 / test_share):
        print(f"test films are 1 in {folds}: a class has films of {people.min()} patients alone")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    _, test = next(splitter.split(index, index["class"], groups))
    index = index.assign(split="train")
    index.iloc[test, index.columns.get_loc("split")] = "test"
    return index


def _patient(pattern, name):
    found = re.search(pattern, Path(name).stem)
    if found is None:
        raise ValueError(
            f"patient_pattern {pattern!r} does not fit the file name {name!r}: give one that fits "
            "all, or none and an index.csv with the column patient"
        )
    return next((group for group in found.groups() if group is not None), found.group())


def _keep(index, folder):
    """Saves the split made for a folder in its `index.csv`, where that can be written."""
    first = ["split", "class", "filename", "patient"]
    others = [name for name in index if name not in first]
    table = index[first + others].to_csv(index=False)
    try:
        write_text(folder / "index.csv", table)
    except OSError:
        print(f"{folder} cannot be written: its split is made again, the same, each time")

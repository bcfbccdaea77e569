"""The audit: what else than disease could a network learn from these films?"""

from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from kerasgan.sources import NOT_LISTED

SEVERITIES = ("serious", "warning", "note")
_ROWS = 512  # films compared with all others at a time
_SIDE = 64  # audits look at films of at most this side


@dataclass(frozen=True)
class Audit:
    """Findings of an audit.

    Attributes:
        findings: DataFrame `severity, finding`, most serious first.
        counts: DataFrame `class, split, films, patients`.
        border_auc: Series, class -> AUC of telling it from the rest by the border ring alone.
    """

    findings: pd.DataFrame
    counts: pd.DataFrame
    border_auc: pd.Series

    def __str__(self):
        lines = [f"[{row.severity}] {row.finding}" for row in self.findings.itertuples()]
        return "\n".join([self.counts.to_string(index=False), "", *lines])


def audit(films):
    """Looks for leaks, duplicates, damage and confounds, and says what it found in plain words.

    Args:
        films: `Films` of any size; they are compared at 64 x 64 at most.

    Returns:
        An `Audit`; `print` shows it.

    Raises:
        ValueError: If there are no films, or none that can be read.

    Example:
        >>> print(audit(load_films("covid-xray-64")))
    """
    if not len(films):
        raise ValueError(f"{films.name} has no films to audit")
    films, unread, sizes = _readable(films)
    if not len(films):
        raise ValueError(f"none of the films of {films.name} can be read: {unread[0][1]}")
    ring = border_auc(films)
    found = [
        *_shared_patients(films),
        *_unknown_patients(films),
        *_patients_of_several_classes(films),
        *_duplicates(films),
        *_confounds(films, ring),
        *_unread(films.skipped, unread),
        *_counts(films),
        *_sizes(sizes),
        *_levels(films),
    ]
    found.sort(key=lambda row: SEVERITIES.index(row[0]))
    if not found:
        found = [("note", "nothing found")]
    return Audit(pd.DataFrame(found, columns=["severity", "finding"]), films.counts(), ring)


def _readable(films):
    """Films at the audit's size, the files that cannot be read, and the sizes of the files."""
    from dataclasses import replace

    from joblib import Parallel, delayed

    from kerasgan.reading import image_size, read_square, squared

    side, stored = min(films.size or _SIDE, _SIDE), not (films.index["path"] == "").any()
    if films.size == side and not stored:
        return films, [], pd.Series(dtype=object)

    def read(path):
        try:
            return image_size(path), read_square(path, side)[0]
        except (ValueError, OSError) as error:
            return None, str(error)

    if stored:
        threads = Parallel(n_jobs=-1, backend="threading")
        results = threads(delayed(read)(path) for path in films.index["path"])
    else:
        results = [((films.size, films.size), squared(x[..., 0], side)) for x in films.images]
    good = np.array([size is not None for size, _ in results])
    names = films.index["filename"].to_numpy()
    unread = [(names[i], results[i][1]) for i in np.flatnonzero(~good)]
    part = replace(films.take(good), size=side, _pixels={})
    part._pixels["images"] = np.array([results[i][1] for i in np.flatnonzero(good)])[..., None]
    return part, unread, pd.Series([results[i][0] for i in np.flatnonzero(good)])


def _shared_patients(films):
    frame = films.index.assign(patient=films.patients)
    splits = frame.groupby("patient")["split"].nunique()
    for patient in splits.index[splits > 1]:
        own = frame[frame["patient"] == patient]
        places = "; ".join(
            f"{split}: {', '.join(names)}" for split, names in own.groupby("split")["filename"]
        )
        yield (
            "serious",
            f"patient {patient} is on both sides of the split ({places}): scores on the test films "
            "are too good; take the patient out of the training films",
        )


def _unknown_patients(films):
    unknown = (films.index["patient"] == "").sum()
    if unknown:
        yield (
            "warning",
            f"the patients of {unknown} films are not known, so each counts as a patient: films of "
            "one person may be on both sides of the split; say who is who in an index.csv with "
            "the column patient, or by a pattern of the file names (--patients)",
        )


def _patients_of_several_classes(films):
    named = films.index[films.index["patient"] != ""].groupby("patient")["class"].unique()
    several = named[named.map(len) > 1]
    if len(several):
        yield (
            "warning",
            f"{len(several)} patients have films of several classes (such as {several.index[0]}: "
            f"{', '.join(several.iloc[0])}): is each one person, or are different people named "
            "alike?",
        )


def _duplicates(films, limit=0.995):
    """Pairs whose thumbnails correlate beyond `limit`, on one side of the split and across it."""
    small = [cv2.resize(x[..., 0], (16, 16), interpolation=cv2.INTER_AREA) for x in films.images]
    flat = np.array(small, float).reshape(len(films), -1)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-9
    names, splits = films.index["filename"].to_numpy(), films.index["split"].to_numpy()
    pairs = {"across": [], "within": []}
    for start in range(0, len(flat), _ROWS):  # all pairs at once would not fit of many films
        alike = np.triu(flat[start : start + _ROWS] @ flat[start:].T > limit, 1)
        for i, j in start + np.argwhere(alike):
            where = "across" if splits[i] != splits[j] else "within"
            pairs[where].append(f"{names[i]} ~ {names[j]}")
    for where, severity in (("across", "serious"), ("within", "warning")):
        if found := pairs[where]:
            place = (
                "on both sides of the split" if where == "across" else "on one side of the split"
            )
            yield severity, f"{len(found)} nearly equal pairs {place}: {_some(found)}"


def border_ring(images):
    """Returns the outermost ring of pixels of uint8 (n, h, w, 1) images, uint8 (n, 2h + 2w - 4)."""
    x = images[..., 0]
    return np.concatenate([x[:, 0], x[:, -1], x[:, 1:-1, 0], x[:, 1:-1, -1]], axis=1)


def border_auc(films, seed=0):
    """Tells each class from the rest by the outermost ring of pixels, where there is no lung.

    A random forest is cross-validated, grouped by patient. Near 0.5 is as it should be; near 1,
    the frame betrays the class, and high scores of a classifier prove little.

    Args:
        films: `Films` of one size.
        seed: Integer seed of the folds and the forest.

    Returns:
        Series of AUC by class, NaN where a class has too few patients for folds.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    from kerasgan.scores import auc

    found = pd.Series(np.nan, index=list(films.classes))
    patients = pd.Series(films.patients).groupby(films.labels).nunique()  # of classes with films
    folds = min(5, int(patients.min()))
    if folds < 2 or len(patients) < 2:
        return found
    ring = border_ring(films.images)
    forest = RandomForestClassifier(100, random_state=seed, n_jobs=1)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    chances = cross_val_predict(
        forest, ring, films.labels, groups=films.patients, cv=splitter, method="predict_proba"
    )
    for column, label in enumerate(patients.index):
        found.iloc[label] = auc(films.labels == label, chances[:, column])
    return found


def _confounds(films, ring):
    people = pd.Series(films.patients).groupby(films.index["class"].to_numpy()).nunique()
    for name, auc in ring.items():
        if auc > 0.8:
            yield (
                "serious" if auc > 0.9 and people.min() >= 10 else "warning",
                f"the outermost ring of pixels alone tells {name} from the rest with AUC {auc:.2f} "
                f"({people[name]} and {people.sum() - people[name]} patients): source or framing "
                "gives the class away, whatever the rest of the image shows",
            )
    means = pd.Series(films.images.mean((1, 2, 3))).groupby(films.index["class"].to_numpy())
    spread = np.nan_to_num(np.sqrt(means.var().mean()))  # no class has two films
    gap = means.mean().max() - means.mean().min()
    if gap > max(spread, 1):
        levels = ", ".join(f"{name} {mean:.0f}" for name, mean in means.mean().items())
        yield "warning", f"mean grey levels differ between classes (of 255: {levels})"


def _unread(skipped, unread):
    unlisted = [name for name, reason in skipped if reason == NOT_LISTED]
    if unlisted:
        yield (
            "warning",
            f"{len(unlisted)} images are not in the index and so left out: {_some(unlisted)}; add "
            "rows for them, or, where the index was made by an audit, delete it to split anew",
        )
    others = [pair for pair in skipped if pair[1] != NOT_LISTED]
    for severity, files, what in (
        ("warning", unread, "cannot be read"),
        ("note", others, "passed over"),
    ):
        if files:
            listed = _some([f"{name} ({reason})" for name, reason in files])
            yield severity, f"{len(files)} files {what}: {listed}"


def _some(names, most=5):
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _counts(films):
    table = films.index.groupby(["split", "class"]).size().unstack(fill_value=0).stack()
    if len(few := table[table < 10]):
        listed = ", ".join(f"{kind} in {split or 'all'}: {n}" for (split, kind), n in few.items())
        yield "note", f"fewer than 10 films ({listed}): scores on them will be coarse"
    totals = films.index.groupby("class").size()
    if totals.max() > 2 * totals.min():
        yield "warning", f"classes differ in size: {totals.to_dict()}"


def _sizes(sizes):
    if len(sizes) and sizes.nunique() > 1:
        shapes = np.array(sizes.tolist())
        aspect, low, high = shapes[:, 1] / shapes[:, 0], shapes.min(0), shapes.max(0)
        yield (
            "note",
            f"films differ in size, {low[1]} x {low[0]} to {high[1]} x {high[0]} pixels, "
            f"width to height {aspect.min():.2f} to {aspect.max():.2f}: "
            "squashing them to a square changes shapes",
        )


def _levels(films):
    flat = films.images.std((1, 2, 3)) < 1
    names = films.index["filename"].to_numpy()
    if flat.any():
        yield "warning", f"{flat.sum()} films show nothing (constant grey): {_some(names[flat])}"
    dark = ~flat & (films.images.max((1, 2, 3)) < 64)
    if dark.any():
        yield (
            "warning",
            f"{dark.sum()} films stay below a quarter of the grey levels: {_some(names[dark])}; "
            "are they of 12 bits in files of 16? Scale them to their range first",
        )

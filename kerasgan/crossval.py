"""The honest evaluation: repeated cross-validation by patient, a GAN for each training fold.

Everything fitted - the GAN, the classifier, the choice of samples - sees the training fold alone. A
fold's GAN is trained once and shared by all arms and seeds. Finished cells are read back, so a
stopped evaluation goes on; folds run in parallel through joblib, also on a Dask cluster.
"""

import contextlib
import functools
import itertools
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from kerasgan.auditing import border_ring
from kerasgan.mixes import CORE_ARMS, VIEWS, Mix, Samples, hog_svm, training_sets
from kerasgan.runs import absolute, begin, locked, read_table, short_hash, write_text
from kerasgan.scores import (
    bootstrap_interval,
    classification_scores,
    corrected_t_test,
    holm,
    mcnemar,
    minimum_detectable_effect,
)

POOLED = ("sensitivity_bootstrap", "specificity_bootstrap", "accuracy_mcnemar")  # of films
_LEVELS = ("sensitivity", "specificity", "auc_bac_vir")
_HELD = {"moments": 2.0, "hog": 4.0}  # what the held GANs were registered with
CODE = "6"  # part of the cache key of a fold's GAN: raise it when the training recipe changes
BASELINES = ("HOG + SVM", "border only", "histogram only")
PRIMARY = ("classic + synthetic", "classic + duplicated")


def cross_validate(films, arms=CORE_ARMS, folder="crossval", on_fold=None, **settings):
    """Scores arms by repeated stratified k-fold cross-validation, grouped by patient.

    Folds are taken one repeat after the other and each is finished, all arms, before the next is
    begun: whenever the evaluation is stopped, the folds so far are whole.

    Args:
        films: All the `Films`, of one size; their split is ignored.
        arms: Sequence of `Mix`, with names of their own; one without films of a class that `films`
            lack, or of one of two classes, is passed over.
        folder: Folder of the finished cells, made if missing. It takes further arms, repeats, seeds
            and classifiers, and refuses other films or settings.
        on_fold: Function of the folder, called after every fold.
        **settings: `n_splits` (5), `repeats` (2), the `first_repeat` (0), of those before which
            the folds are passed over, `seeds` ((0,)), `classifiers` (("resnet",), of
            `CLASSIFIERS`, or `"transfer"`, a linear model on `Encoder.regions` of the saved
            `encoder`, or on `"hog"`, for arms that mix their images), `steps` (600) of
            `batch_size` (64), `gan_steps` (1500), `gan_width` (32), `gan_encoder` (None: as in
            `fold_gan`), `seed` (0) of the folds, `baselines` (`BASELINES`), `n_jobs` (1), and
            `scheduler`, the address of a Dask scheduler whose workers share the folder.

    Returns:
        The tidy table `arm, kind, classifier, repeat, fold, seed, class, metric, value,
        data_hash`.

    Raises:
        BlockingIOError: If another process works in the folder.
        ValueError: If two arms share a name, a setting is unknown, or the folder was begun with
            other films, patients, settings or arms of these names; if a class has fewer patients
            than folds, or a patient two films of one class and name; or if a saved encoder's card
            names patients of these films.

    Example:
        >>> extra = Mix("twice", "synthetic", classic=True, synthetic=2)
        >>> table = cross_validate(load_films("covid-xray-64"), [*CORE_ARMS, extra], "runs/cv")
    """
    from tqdm import tqdm

    from kerasgan.networks import build_projected_discriminator
    from kerasgan.store import load_safely

    settings, fixed = _prepared(films, settings)
    left_out = films.classes if len(films.classes) > 2 else ()
    arms = [arm for arm in arms if arm.without in ("", *left_out)]
    if len({_path(Path(), arm.name, "", 0) for arm in arms}) != len(arms):  # also as file names
        raise ValueError(f"arms need names of their own. Received: {[arm.name for arm in arms]}")
    folder = absolute(folder)
    # All that may be unfit is tried before anything is noted.
    folds = list(films.fold_positions(*(settings[k] for k in ("n_splits", "repeats", "seed"))))
    if "transfer" in settings["classifiers"]:
        transfer_encoder(settings["encoder"])
    if settings["gan_encoder"] is not None:
        build_projected_discriminator(load_safely(settings["gan_encoder"]), films.size)
    known = films.index.assign(patient=films.patients)
    if (twice := known.duplicated(["class", "filename", "patient"])).any():
        first = "/".join(known.loc[twice, ["class", "filename"]].iloc[0])
        raise ValueError(f"{first} is there twice, of one patient: rename one, to tell them apart")
    if unknown := (films.index["patient"] == "").sum():
        print(
            f"WARNING: the patients of {unknown} films are not known, so each counts as a patient: "
            "one person's films may be in training and test folds, and scores too good"
        )
    with locked(folder):
        begin(folder, {arm.name: asdict(arm) for arm in arms}, **fixed)
        jobs = [
            (arms, films, fold, divmod(number, settings["n_splits"]), folder, settings)
            for number, fold in enumerate(folds)
            if number >= settings["first_repeat"] * settings["n_splits"]
        ]
        left = [job for job in jobs if _missing(arms, _home(folder, job[3]), settings)]
        done = parallel(_run_fold_of, left, settings["n_jobs"], settings["scheduler"])
        with tqdm(total=len(jobs), initial=len(jobs) - len(left), desc="folds", unit="fold") as bar:
            for _ in done:
                bar.update()
                if on_fold:
                    on_fold(folder)
    return read_scores(folder, films)


_DEFAULTS = {
    "n_splits": 5,
    "repeats": 2,
    "first_repeat": 0,
    "seeds": (0,),
    "classifiers": ("resnet",),
    "steps": 600,
    "batch_size": 64,
    "gan_steps": 1500,
    "gan_width": 32,
    "seed": 0,
    "baselines": BASELINES,
    "encoder": None,
    "gan_encoder": None,
    "n_jobs": 1,
    "scheduler": None,
}
_FIXED = ("n_splits", "seed", "steps", "batch_size", "gan_steps", "gan_width", "gan_encoder")


def _settings(given):
    from kerasgan.classify import CLASSIFIERS

    if unknown := set(given) - set(_DEFAULTS):
        raise ValueError(f"settings are {sorted(_DEFAULTS)}. Received: {sorted(unknown)}")
    settings = {**_DEFAULTS, **given}
    known = {"classifiers": (*CLASSIFIERS, "transfer"), "baselines": BASELINES}
    for name, values in known.items():
        if isinstance(settings[name], str) or set(settings[name]) - set(values):
            raise ValueError(f"{name} are several of {values}. Received: {settings[name]!r}")
    return settings


def facts_of(films, **settings):
    """What all results of an evaluation have in common, and a later one must share to join it.

    Args:
        films: The `Films`.
        **settings: As of `cross_validate`.

    Returns:
        Dict from name to value: hashes of films, patients and encoders, the settings, and `CODE`.

    Raises:
        ValueError: As of `cross_validate`.
    """
    return _prepared(films, settings)[1]


def _prepared(films, given):
    """The settings, with encoders by their absolute paths, and the facts of `facts_of`."""
    settings = _settings(given)
    fixed = {"films": films.hash, "code": CODE, **{name: settings[name] for name in _FIXED}}
    if "transfer" in settings["classifiers"]:
        if settings["encoder"] is None:
            raise ValueError("transfer needs encoder=, hog or the path of a .keras file")
        settings["encoder"], fixed["encoder"] = _saved_encoder(settings["encoder"], films)
    if (encoder := settings["gan_encoder"]) == "hog":
        raise ValueError("gan_encoder is a .keras file: no GAN is judged by hog")
    if encoder is not None:
        settings["gan_encoder"], fixed["gan_encoder"] = _saved_encoder(encoder, films)
    rows = films.index[["class", "filename", "patient"]].to_csv(index=False)
    fixed["patients"] = short_hash(rows)  # whom the folds part
    return settings, fixed


def _saved_encoder(path, films):
    """Returns the absolute path of an encoder and the hash of its file; `hog` is no file.

    One whose card says that it was trained on patients of the films, and so of test folds, is
    refused.
    """
    from kerasgan.store import read_card, shared_patients

    if path == "hog":
        return path, path
    path = absolute(path)
    card = read_card(path.parent) if (path.parent / "card.json").is_file() else None
    if card and (shared := shared_patients(card, films)):
        raise ValueError(
            f"{path} was trained on patients of these films, such as {shared[0]}, who are in test "
            "folds: give an encoder that saw none of them"
        )
    return str(path), short_hash(path.read_bytes())


def parallel(function, jobs, n_jobs=1, scheduler=None):
    """Runs jobs on this machine or on a Dask cluster.

    Args:
        function: Function of a job.
        jobs: List of tuples, its arguments.
        n_jobs: Processes on this machine; each takes its share of the processors.
        scheduler: Address of a Dask scheduler, or `None` for this machine.

    Yields:
        What each job returned, as soon as it is done.
    """
    from joblib import Parallel, cpu_count, delayed, parallel_config

    if scheduler is None:
        if n_jobs > 1:
            function = functools.partial(_on_threads, max(1, cpu_count() // n_jobs), function)
        calls = [delayed(function)(*job) for job in jobs]
        yield from Parallel(n_jobs=n_jobs, return_as="generator_unordered")(calls)
        return
    from dask.distributed import Client

    with Client(scheduler), parallel_config("dask"):
        calls = [delayed(function)(*job) for job in jobs]
        yield from Parallel(return_as="generator_unordered")(calls)


def _on_threads(threads, function, *job):
    """Runs a job in a process whose TensorFlow leaves the others their processors."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # a process's later jobs find it set
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    return function(*job)


def _run_fold_of(arms, films, fold, place, folder, settings):
    """`run_fold` on positions: no fold's pixels are copied before its turn."""
    run_fold(arms, *(films.take(side) for side in fold), place, folder, settings)


def run_fold(arms, train, test, place, folder, settings):
    """Computes and stores the cells of one fold that are not finished yet.

    Args:
        arms: Sequence of `Mix`.
        train: The training `Films`.
        test: The test `Films`.
        place: `(repeat, fold)`.
        folder: Folder of the evaluation.
        settings: Settings of `cross_validate`.
    """
    from tqdm import tqdm

    settings = _settings(settings)
    home, samples = _home(folder, place), {}
    for arm, classifier, seed in _missing(arms, home, settings):
        began = time.monotonic()
        if classifier == "scikit-learn":
            chances = baseline(arm.name, train, test)
        else:
            if arm.synthetic and arm.gan not in samples:
                most = max(each.drawn for each in arms if each.gan == arm.gan)
                place_of = folder / "gans", settings, fold_seed(place)
                samples[arm.gan] = _samples(train, most, arm.gan, *place_of)
            drawn, own = samples.get(arm.gan), fold_seed(place, seed)
            chances = _predict(arm, train, test, drawn, classifier, own, settings)
        what = f"repeat {place[0]}, fold {place[1]}: {arm.name}, {classifier}, seed {seed}"
        if not np.isfinite(chances).all():
            raise FloatingPointError(f"{what}: its probabilities are NaN; try other --steps")
        facts = {"kind": arm.kind, "classifier": classifier, "repeat": place[0], "fold": place[1]}
        table = test.index[["filename", "class"]].assign(patient=test.patients)
        table.insert(0, "arm", arm.name)
        table = table.assign(**facts, seed=seed)
        table[[f"p_{name}" for name in test.classes]] = chances
        write_text(_path(home, arm.name, classifier, seed), table.to_csv(index=False))
        tqdm.write(f"{what}: {time.monotonic() - began:.0f} s")


def fold_seed(place, seed=0):
    """A seed of its own for every fold: were it one for all, its luck would be in every fold.

    Args:
        place: `(repeat, fold)`.
        seed: Integer seed of the evaluation's.

    Returns:
        An integer below 2^30.
    """
    return int(np.random.default_rng([*place, seed]).integers(2**30))


def _home(folder, place):
    return folder / f"repeat{place[0]}-fold{place[1]}"


def _missing(arms, home, settings):
    """The cells (arm, classifier, seed) of a fold that are not finished, in order."""
    cells = [(Mix(name, "baseline"), "scikit-learn", 0) for name in settings["baselines"]]
    cells += [
        (arm, classifier, seed)
        for seed in settings["seeds"]
        for classifier in settings["classifiers"]
        for arm in arms
        if classifier != "transfer" or arm.schedule == "mixed"  # a convex fit knows no order
    ]
    return [cell for cell in cells if not _path(home, cell[0].name, *cell[1:]).is_file()]


def _path(home, arm, classifier, seed):
    name = f"{arm}--{classifier}--{seed}"
    return home / f"{''.join(c if c.isalnum() or c in '.-' else '_' for c in name)}.csv"


def _samples(train, ratio, kind, folder, settings, seed):
    """Samples of GANs fitted to the training fold; trained once, then cached.

    Returns `Samples`, `ratio` times the films of each class.
    """
    from kerasgan.gan import draw
    from kerasgan.quality import verdicts

    parts = [train.only(name) for name in train.classes] if kind == "per class" else [train]
    images, labels, realism = [], [], []
    for part in parts:
        steps = -(-settings["gan_steps"] // len(parts))
        width, encoder = settings["gan_width"], settings["gan_encoder"]
        gan = fold_gan(part, steps, folder, width, encoder, kind == "held", seed)
        for label, name in enumerate(part.classes):
            own = train.classes.index(name)
            count = int(np.ceil(ratio * (part.labels == label).sum()))
            images.append(draw(gan.averaged, count, label, seed=seed + own))
            labels.append(np.full(count, own))
            realism.append(verdicts(gan.discriminator, images[-1], label))
    return Samples(*(np.concatenate(each) for each in (images, labels, realism)))


def fold_gan(films, steps, folder, width, encoder=None, held=False, seed=0):
    """Trains the GAN of a training fold, or reads it back where it was trained before.

    Args:
        films: The training fold's `Films`.
        steps: Steps of 32 films.
        folder: Folder of the GANs, `gans` in that of the evaluation.
        width: Width of the generator, and of a discriminator of pixels.
        encoder: Path of a `.keras` file whose features the discriminator judges, or `None`.
        held: `True` holds the samples to the films' HOG and, with an encoder, to the moments of
            its maps, by the weights `_HELD`; `False` to neither.
        seed: Integer seed of the training.

    Returns:
        The trained conditional `GAN` of `kerasgan.best_gan` as registered in results/protocol.md:
        without an encoder it does not frame.
    """
    from kerasgan.store import load_safely
    from kerasgan.training import HELD, best_gan, epochs_of, fit_gan

    recipe = {"steps": steps, "width": width, "code": CODE, "seed": seed}
    changes = dict.fromkeys(HELD, 0.0)
    if held:
        changes |= _HELD
        recipe["held"] = _HELD
    if encoder is None:
        changes |= {"framing": False, "moments": 0.0}
    else:
        encoder, recipe["encoder"] = _saved_encoder(encoder, films)
        changes["encoder"] = load_safely(encoder)
    key = short_hash(f"{films.hash} {json.dumps(recipe)}")
    epochs = epochs_of(steps, films)
    gan = best_gan(films.size, width, len(films.classes), steps, seed=seed, **changes)
    fit_gan(gan, films, epochs, folder / key, 32, every=max(1, epochs // 4), grids=1)
    return gan


def _predict(arm, train, test, samples, classifier, seed, settings):
    from kerasgan.classify import fit_steps, fit_transfer, predict_mean

    phases = training_sets(arm, train, samples, seed)
    look = VIEWS[arm.view]
    phases = [(share, look(images), labels) for share, images, labels in phases]
    if classifier == "transfer":
        _, images, labels = phases[0]
        model = fit_transfer(
            transfer_encoder(settings["encoder"]), images, labels, classic=arm.classic, seed=seed
        )
        chances = np.zeros((len(test), len(train.classes)))
        chances[:, np.unique(labels)] = model(look(test.images))
        return chances
    model = fit_steps(
        classifier,
        phases,
        len(train.classes),
        settings["steps"],
        settings["batch_size"],
        arm.classic,
        seed,
    )
    return predict_mean(model, look(test.images), flips=classifier != "cnn")


@functools.cache
def transfer_encoder(path):
    """Returns the encoder of transfer learning: `"hog"`, or regions of a saved model's maps."""
    from kerasgan.quality import Encoder

    return Encoder.hog() if path == "hog" else Encoder.regions(path)


def baseline(name, train, test):
    """Fits one of `BASELINES`, a classical model, to films.

    Args:
        name: `"HOG + SVM"`, `"border only"` or `"histogram only"`.
        train: The training `Films`.
        test: The test `Films`.

    Returns:
        Probabilities of the test films' classes, float (n, k).
    """
    from sklearn.ensemble import RandomForestClassifier

    if name == "HOG + SVM":
        return hog_svm(train, test.images)
    look = {"border only": border_ring, "histogram only": _histogram}[name]
    model = RandomForestClassifier(300, random_state=0).fit(look(train.images), train.labels)
    return model.predict_proba(look(test.images))


def _histogram(images):
    return np.array([np.histogram(image, 8, (0, 256))[0] for image in images])


def read_predictions(folder, classifiers=None):
    """Reads all finished cells of an evaluation.

    Where several classifiers learned from an arm, their ensemble is added, under the names joined
    by `" + "`: the mean of their probabilities, on the folds and seeds that all of them finished.

    Args:
        folder: Folder given to `cross_validate`.
        classifiers: Names of those read, beside the baselines; all by default.

    Returns:
        DataFrame, one row per film and cell: `arm, filename, class, patient, kind, classifier,
        repeat, fold, seed`, and `p_<class>`.

    Raises:
        FileNotFoundError: If no cell is finished.
    """
    paths = sorted(Path(folder).glob("repeat*/*.csv"))
    if not paths:
        raise FileNotFoundError(f"no finished cells in {folder}: run cross_validate first")
    cells = pd.concat(map(_read_cell, paths), ignore_index=True)
    if classifiers is not None:
        cells = cells[cells["classifier"].isin([*classifiers, "scikit-learn"])]
    return pd.concat([cells, _ensembles(cells)], ignore_index=True)


def _read_cell(path):
    remedy = "delete it, and run cross_validate again"
    table = read_table(path, remedy, ("arm", "filename", "class", "patient", *_KEYS[1:]))
    numbers = table[["repeat", "fold", "seed", *(name for name in table if name[:2] == "p_")]]
    if table.isna().any(axis=None) or not all(map(pd.api.types.is_numeric_dtype, numbers.dtypes)):
        raise ValueError(f"{path} is damaged, a row is not whole: {remedy}")
    return table


def _ensembles(cells):
    cells = cells[cells["classifier"] != "scikit-learn"]
    names = sorted(cells["classifier"].unique())
    place = ["arm", "repeat", "fold", "seed"]
    cells = cells[cells.groupby(place)["classifier"].transform("nunique") == len(names)]
    if len(names) < 2 or cells.empty:
        return cells.iloc[:0]
    chances = [name for name in cells if name.startswith("p_")]
    keys = [name for name in cells if name not in (*chances, "classifier")]
    mean = cells.groupby(keys, sort=False, dropna=False)[chances].mean().reset_index()
    return mean.assign(classifier=" + ".join(names))[cells.columns]


_KEYS = ["arm", "kind", "classifier", "repeat", "fold", "seed"]


def read_scores(folder, films, classifiers=None):
    """Scores all finished cells of an evaluation.

    Args:
        folder: Folder given to `cross_validate`.
        films: The `Films` evaluated.
        classifiers: As of `read_predictions`.

    Returns:
        The tidy table of `cross_validate`.
    """
    return scores_of(read_predictions(folder, classifiers), films)


def scores_of(predictions, films):
    """Scores the cells of a table of `read_predictions`; returns the table of `cross_validate`."""
    tables = []
    for key, cell in predictions.groupby(_KEYS, sort=False):
        labels = [films.classes.index(name) for name in cell["class"]]
        chances = cell[[f"p_{name}" for name in films.classes]].to_numpy()
        scores = classification_scores(labels, chances, films.classes)
        tables.append(scores.assign(**dict(zip(_KEYS, key, strict=True))))
    table = pd.concat(tables, ignore_index=True).assign(data_hash=films.hash[:16])
    return table[[*_KEYS, "class", "metric", "value", "data_hash"]]


def contrasts(scores, n_train, n_test, predictions=None, classifier=None, control=PRIMARY[1]):
    """Compares every arm with a control, paired by fold: corrected resampled t-tests.

    Baselines and probes are set beside the control by an interval, and not tested.

    Args:
        scores: Table of `cross_validate`.
        n_train: Films in a training fold.
        n_test: Films in a test fold.
        predictions: Table of `read_predictions`; adds `sensitivity_bootstrap`, the interval that
            draws patients, and `accuracy_mcnemar`, the exact test on pooled predictions.
        classifier: The classifier of the primary contrast; by default the table's first.
        control: Name of the control arm.

    Returns:
        DataFrame `arm, kind, control, classifier, metric, difference, low, high, p, p_adjusted, n,
        primary`, where `n` is the number of folds, or of films for the two metrics of predictions;
        specificity, which is sensitivity where there are two classes, is not tested there;
        p-values are adjusted by Holm's method over all but the primary contrast, which is the
        corrected t-test of `PRIMARY` in macro sensitivity, alone.
    """
    networks = scores.loc[scores["classifier"] != "scikit-learn", "classifier"].unique()
    classifier = classifier or next(iter(networks), None)
    kinds = scores.drop_duplicates("arm").set_index("arm")["kind"]
    rows = []
    for name in networks:
        for metric in ("sensitivity", "specificity", "auc_bac_vir", "accuracy"):
            for arm, own in _pairs(scores[_macro(scores, metric)], name, control):
                paired = _differences(own, arm, control)
                if len(paired) > 1:
                    test = corrected_t_test(paired, n_train, n_test)
                    rows.append((arm, control, name, metric, *test, len(paired)))
        if predictions is not None:
            for arm, own in _pairs(predictions, name, control):
                rows += [(arm, control, name, *row) for row in _pooled(own, arm, control)]
    columns = ["arm", "control", "classifier", "metric", "difference", "low", "high", "p", "n"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(1, "kind", table["arm"].map(kinds))
    table.loc[table["kind"] == "baseline", "p"] = np.nan
    if len({*scores["class"]} - {"macro"}) == 2:  # of two classes it is the sensitivity once more
        table.loc[table["metric"] == "specificity", "p"] = np.nan
    table["primary"] = (
        (table["arm"] == PRIMARY[0])
        & (table["control"] == PRIMARY[1])
        & (table["classifier"] == classifier)
        & (table["metric"] == "sensitivity")
    )
    table.insert(9, "p_adjusted", table["p"])
    return adjusted(table)


def adjusted(table):
    """Returns a table of `contrasts` with all p-values but the primary's adjusted by Holm."""
    others = ~table["primary"]
    table = table.assign(p_adjusted=table["p"])
    table.loc[others, "p_adjusted"] = holm(table.loc[others, "p"])
    return table


def _macro(scores, metric):
    return (scores["class"] == "macro") & (scores["metric"] == metric) & scores["value"].notna()


def _pairs(table, classifier, control):
    """Pairs (arm, rows of it and of the control) of a classifier's arms and the baselines.

    Rows are those of the folds, and of the seeds, that both have; a baseline knows no seed.
    """
    table = table[table["classifier"].isin([classifier, "scikit-learn"])]
    for arm in table["arm"].unique():
        own = table[table["arm"].isin([arm, control])]
        seeds = [] if "scikit-learn" in set(own["classifier"]) else ["seed"]
        own = own[own.groupby(["repeat", "fold", *seeds])["arm"].transform("nunique") == 2]
        if len(own):
            yield arm, own


def _differences(scores, arm, control):
    """What an arm has more than the control, a value a fold, seeds averaged."""
    folds = scores.pivot_table("value", ["repeat", "fold"], "arm")
    return folds[arm] - folds[control]


def _by_film(own):
    """Per film and arm: the share of right predictions, and whether the pooled one is right.

    A film is predicted once a repeat and seed, never by a model that saw its patient; its pooled
    prediction is the class of the highest mean probability.
    """
    columns = [name for name in own if name.startswith("p_")]
    classes = np.array([name[2:] for name in columns])
    keys = ["class", "filename", "patient", "arm"]
    own = own[[*keys, *columns]].assign(right=_right(own, columns, classes))
    mean = own.groupby(keys)[[*columns, "right"]].mean().reset_index()
    mean["pooled"] = _right(mean, columns, classes)
    return mean.pivot(index=keys[:3], columns="arm", values=["right", "pooled"])


def _right(table, columns, classes):
    chosen = classes[table[columns].to_numpy().argmax(axis=1)]
    return (chosen == table["class"].to_numpy()).astype(float)


def _pooled(predictions, arm, control):
    """Rows (metric, difference, low, high, p, n) of two arms on the films both predicted."""
    films = _by_film(predictions).dropna()
    patients = films.index.get_level_values("patient")
    kinds = pd.factorize(films.index.get_level_values("class"))[0]
    gain = {
        part: (films[part, arm] - films[part, control]).to_numpy() for part in ("right", "pooled")
    }

    def sensitivity(gain, kinds):
        count = np.bincount(kinds)
        return np.mean(np.bincount(kinds, gain)[count > 0] / count[count > 0])

    interval = bootstrap_interval(sensitivity, gain["right"], kinds, groups=patients)
    yield "sensitivity_bootstrap", *interval, np.nan, len(films)
    interval = bootstrap_interval(np.mean, gain["pooled"], groups=patients)
    p = mcnemar(np.ones(len(films)), films["pooled", arm], films["pooled", control])[2]
    yield "accuracy_mcnemar", *interval, p, len(films)


def levels(scores, n_train, n_test, predictions=None):
    """Macro scores of every arm by itself, with their intervals.

    Args:
        scores: Table of `cross_validate`.
        n_train: Films in a training fold.
        n_test: Films in a test fold.
        predictions: Table of `read_predictions`; adds the rows that draw patients.

    Returns:
        DataFrame `arm, kind, classifier, metric, value, low, high, n`: `sensitivity`,
        `specificity` and `auc_bac_vir`, means of `n` folds with the 95 % interval of
        `corrected_t_test`, cut off at 0 and 1; and `sensitivity_bootstrap` and
        `specificity_bootstrap` of `n` films, each of which counts by the mean of its predictions
        over repeats and seeds, with the interval that draws whole patients.
    """
    rows, keys = [], ["arm", "kind", "classifier"]
    wanted = (scores["class"] == "macro") & scores["metric"].isin(_LEVELS)
    for key, own in scores[wanted].dropna(subset="value").groupby([*keys, "metric"], sort=False):
        folds = own.groupby(["repeat", "fold"])["value"].mean()
        interval = corrected_t_test(folds, n_train, n_test)[1:3] if len(folds) > 1 else [np.nan] * 2
        rows.append((*key, folds.mean(), *np.clip(interval, 0, 1), len(folds)))
    if predictions is not None:
        for key, own in predictions.groupby(keys, sort=False):
            rows += [(*key, *row) for row in _of_patients(own)]
    return pd.DataFrame(rows, columns=[*keys, "metric", "value", "low", "high", "n"])


def _of_patients(predictions):
    """Rows of `levels` of one arm's predictions."""
    columns = [name for name in predictions if name.startswith("p_")]
    classes = [name[2:] for name in columns]
    taken = np.eye(len(columns))[predictions[columns].to_numpy().argmax(axis=1)]
    taken = predictions.assign(**dict(zip(columns, taken.T, strict=True)))
    films = taken.groupby(["class", "filename", "patient"])[columns].mean()
    kinds = np.array([classes.index(name) for name in films.index.get_level_values("class")])
    patients = films.index.get_level_values("patient")

    def sensitivity(taken, kinds):
        return np.mean([taken[kinds == k, k].mean() for k in np.unique(kinds)])

    def specificity(taken, kinds):
        return np.mean([1 - taken[kinds != k, k].mean() for k in range(len(classes))])

    for metric in (sensitivity, specificity):
        interval = bootstrap_interval(metric, films.to_numpy(), kinds, groups=patients)
        yield f"{metric.__name__}_bootstrap", *interval, len(films)


def detectable(scores, n_train, n_test, classifier, wanted_power=0.8):
    """Returns the smallest true primary contrast that this many folds find with the given power.

    Args:
        scores: Table of `cross_validate`, with two folds or more.
        n_train: Films in a training fold.
        n_test: Films in a test fold.
        classifier: The classifier of the primary contrast.
        wanted_power: Probability of finding it.
    """
    pairs = dict(_pairs(scores[_macro(scores, "sensitivity")], classifier, PRIMARY[1]))
    paired = _differences(pairs[PRIMARY[0]], *PRIMARY)
    return minimum_detectable_effect(paired.std(), len(paired), n_train, n_test, wanted_power)


_SEEN = {
    "no lungs": "with the lungs blacked out",
    "border only": "without seeing a lung",
    "histogram only": "by grey levels alone, without seeing where they are",
}


_MEANT = {"sensitivity": "macro sensitivity", "auc_bac_vir": "AUC, bacterial against viral,"}


def shortcut_warnings(scores, share=0.8):
    """Names the probes that see no lungs, or no shapes, and score nearly as well as the best arm.

    Args:
        scores: Table of `cross_validate`.
        share: Share of the best arm's gain over chance, in macro sensitivity or in the AUC of
            bacterial against viral pneumonia, that is worth a warning.

    Returns:
        List of sentences, empty if no probe reaches it: one for each classifier and metric, the
        best arm and the probes being the classifier's own, and baselines any one's.
    """
    found = []
    chances = {"sensitivity": 1 / (scores["class"].nunique() - 1), "auc_bac_vir": 0.5}
    networks = scores.loc[scores["classifier"] != "scikit-learn", "classifier"].unique()
    for classifier, (metric, chance) in itertools.product(networks, chances.items()):
        own = scores[scores["classifier"].isin([classifier, "scikit-learn"])]
        mean = own[_macro(own, metric)].groupby(["arm", "kind"])["value"].mean().reset_index("kind")
        best = mean.loc[mean["kind"] != "baseline", "value"].max()
        found += [
            f"{name}: {_MEANT[metric]} {value:.3f} {_SEEN[name]}, the best arm of {classifier} "
            f"{best:.3f}. Scores say more about where the films come from than about disease."
            for name, value in mean["value"].reindex(_SEEN).dropna().items()
            if best > chance and value - chance > share * (best - chance)
        ]
    return found


def source_confusion(predictions, arm="no covid films", without="covid"):
    """Returns how a classifier that never saw a class takes the films of that class.

    Were only disease seen, covid films would be taken for one of the pneumonias.

    Args:
        predictions: Table of `read_predictions`.
        arm: Name of the arm trained without the class.
        without: The class.

    Returns:
        Series from class to the share of those films taken for it, the class itself left out;
        empty where there is no such arm.
    """
    own = predictions[(predictions["arm"] == arm) & (predictions["class"] == without)]
    known = [name for name in own if name.startswith("p_") and name != f"p_{without}"]
    if own.empty:
        return pd.Series(dtype=float)
    taken = own[known].idxmax(axis=1).str[2:]
    return taken.value_counts(normalize=True).reindex([name[2:] for name in known], fill_value=0.0)

"""The report: one self-contained page of a run, with its tables and figures."""

import base64
import html
import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd

from kerasgan.runs import read_json, read_table, write_text
from kerasgan.sources import COLLECTIONS

_FIGURES = (
    ("counts", "Films per class", "Films and patients of each class on either side of the split."),
    ("films", "The films", "Some training films of each class, at the size the networks see."),
    ("intensities", "Grey levels", "Classes that differ here can be told apart without disease."),
    ("generated-*", "Real and generated", "Real training films beside samples of the class's GAN."),
    ("evolution", "A GAN learns", "The same latents of one class over the training."),
    ("gan_history", "GAN training", "Losses, and what the discriminator thinks of either side."),
    (
        "accuracy",
        "Does more data help?",
        "Total accuracy on the test films, 95 % Wilson intervals.",
    ),
    ("class_scores", "Class by class", "Sensitivity and specificity, 95 % Wilson intervals."),
    ("confusion", "Confusion", "True class in rows, predicted class in columns."),
    ("history", "Classifier training", "The test curve is watched, never used to choose."),
)


# What a table of the reproduction was made with, where nothing beside it says otherwise.
STUDY = {"epochs": 750, "passes": 100, "double_softmax": True}


def caution(films):
    """What stands beside any score on films: a sentence on what they are worth.

    Args:
        films: The `Films`.

    Returns:
        The text; of the public collections, and of the simulated films that stand in for them,
        it names what else than disease tells the classes apart.
    """
    if films.name not in (*COLLECTIONS, "simulated"):
        return (
            "Research code, not for diagnosis. Scores measure whatever tells these classes apart, "
            "such as age, source and framing, along with disease: ask the audit."
        )
    return (
        "Research code, not for diagnosis. In the public collection the covid films are of adults, "
        "from publications, and the other classes of children of one hospital: a classifier can "
        "tell them apart by age and source without seeing the disease. Bacterial against viral "
        "pneumonia is free of this, but there too a ring of border pixels without any lung has an "
        "AUC of 0.70 (0.58 to 0.82)."
    )


def banner(films):
    """Shows, in a notebook, which films are in use, and the warning that belongs to them.

    Args:
        films: The `Films`.

    Returns:
        An `IPython.display.HTML` object.
    """
    from IPython.display import HTML

    text = f"{len(films)} films of {len(films.classes)} classes from {html.escape(films.name)}."
    style = "padding:.6em 1em;border-left:.4em solid #d97a00;background:#fff1d6;color:#1b1f24"
    note = f'<div style="{style}"><b>{html.escape(films.note)}</b></div>' if films.note else ""
    return HTML(f"{note}<p>{text} Research code, not for diagnosis.</p>")


_NEEDS = ("arm", "evaluation", "class", "metric", "value", "low", "high", "classic", "synthetic")


def summary_table(run):
    """Returns a run's comparison at a glance: one row per arm.

    Args:
        run: A `Run` whose notebook 04_comparison has finished.

    Returns:
        DataFrame: `arm`, images per class, accuracy with its 95 % interval, macro sensitivity,
        specificity and F1, and accuracy by the reference study's own evaluation.

    Raises:
        FileNotFoundError: If the run has no `comparison.csv`.
    """
    path = run.folder / "comparison.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: run notebook 04_comparison with RUN={run.name!r}")
    rows = read_table(path, "run notebook 04_comparison again", _NEEDS)
    rows = rows[rows["class"] == "macro"]
    table = []
    for arm, own in rows.groupby("arm", sort=False):
        sure = own[own["evaluation"] == "deterministic"].groupby("metric")
        value, low, high = (sure[name].mean() for name in ("value", "low", "high"))
        study = own[(own["evaluation"] == "reference") & (own["metric"] == "accuracy")]
        table.append(
            {
                "arm": arm,
                "classic": int(own["classic"].iloc[0]),
                "synthetic": int(own["synthetic"].iloc[0]),
                "accuracy": f"{value['accuracy']:.3f}",
                "95 % interval": f"{low['accuracy']:.3f} to {high['accuracy']:.3f}",
                "sensitivity": f"{value['sensitivity']:.3f}",
                "specificity": f"{value['specificity']:.3f}",
                "F1": f"{value['f1']:.3f}",
                "study's evaluation": f"{study['value'].mean():.3f}",
            }
        )
    return pd.DataFrame(table)


def write_report(run, stages=()):
    """Writes `report.html` of a run: one page, figures and tables inside.

    Args:
        run: A `Run` whose notebooks have finished.
        stages: Names of the stages, whose times are shown.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: If the run has no comparison yet.
    """
    import jinja2

    import kerasgan

    films = run.films()
    findings = run.folder / "audit.csv"
    command = ["python", "-m", "kerasgan", "run", run.name, "--profile", run.settings["profile"]]
    command += ["--data", run.settings["data"], "--seed", str(run.seed)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True
    )
    page = environment.get_template("report.html").render(
        run=run,
        films=films,
        note=films.note,
        caution=caution(films),
        command=shlex.join(command),
        version=kerasgan.__version__,
        findings=_findings(findings) if findings.is_file() else [],
        figures=[_figures(run, *figure) for figure in _FIGURES],
        summary=summary_table(run).to_dict("records"),
        shortcuts=_shortcuts(run, films),
        test_films=len(films.split("test")),
        times=[(stage, run.finished(stage)) for stage in stages],
    )
    path = run.path("report.html")
    write_text(path, page)
    return path


def _findings(path):
    table = read_table(path, "run notebook 01_data again", ("severity", "finding"))
    return table.to_dict("records")


def check_tables(out, films, n_splits, classifier, first_repeat=0, made=None):
    """Refuses, before anything is computed, a folder of tables that an evaluation cannot join.

    Args:
        out: Folder of the tables, as of `write_evaluation`.
        films: The `Films` to be evaluated.
        n_splits: Folds a repeat.
        classifier: The classifier whose earlier repeats are gone on from.
        first_repeat: The first repeat that is not in the tables yet.
        made: `crossval.facts_of` of the evaluation that is to go on from earlier repeats, or
            `None` if it is not known what these were made with.

    Raises:
        ValueError: If they are those of a run, of other films or, to go on from, of other settings,
            or lack folds of an arm in earlier repeats.
        FileNotFoundError: If there are none to go on from.
    """
    out, path = Path(out), Path(out) / "comparison.csv"
    if (out / "stages").is_dir():
        raise ValueError(f"{out} holds a run, whose comparison.csv would be lost: choose another")
    for name in ("comparison", "statistics", "levels") if first_repeat else ():
        if not (out / f"{name}.csv").is_file():
            raise FileNotFoundError(f"no {out / name}.csv to go on from: leave --first-repeat")
    if not path.is_file():
        return
    table = read_table(path, "move it away, and try again")
    if not {"arm", "classifier", "repeat", "fold", "data_hash"} <= set(table):
        raise ValueError(f"{path} is no table of this kind: move comparison.csv away")
    if set(table["data_hash"]) - {films.hash[:16]}:
        raise ValueError(
            f"{path} is of other films, or of another --size: give another --out, or move it away"
        )
    if set(table["fold"]) - set(range(n_splits)):
        raise ValueError(f"{path} has more than {n_splits} folds: give another --out")
    for repeat in range(first_repeat):
        own = table[(table["classifier"] == classifier) & (table["repeat"] == repeat)]
        folds = own.groupby("arm")["fold"].unique().map(set)
        if own.empty or (folds != set(range(n_splits))).any():
            arm, has = min(folds.items(), key=lambda item: len(item[1]), default=("any arm", set()))
            known = ", ".join(sorted(map(str, has)))
            raise ValueError(
                f"{path} has the folds {known} of repeat {repeat} of {classifier}, {arm}, not "
                f"{n_splits}: evaluate these first, or give another --out"
            )
    if first_repeat and made:
        _check_made(out, classifier, made)


def _check_made(out, classifier, made):
    """Refuses to go on from rows of a classifier that other settings, films or code have made."""
    path = out / "comparison.json"
    known = read_json(path, "move it away") if path.is_file() else {}
    before, made = known.get(classifier), json.loads(json.dumps(_made_of(classifier, made)))
    if not isinstance(before, dict):
        raise ValueError(
            f"{path} does not say what the rows of {classifier} were made with: evaluate from "
            "repeat 0, or give another --out"
        )
    remedy = "evaluate from repeat 0, or give another --out"
    whose = f"the rows of {classifier} in {out} were"
    _refuse_others(whose, before, made, before.keys() | made.keys(), remedy)


def _refuse_others(whose, before, made, names, remedy):
    """Raises `ValueError`, with a remedy, if what was made before had other options."""
    for name in sorted(names):
        if before.get(name) != made.get(name):
            raise ValueError(
                f"{whose} made with {name}={before.get(name)}: {remedy}. Received: {made.get(name)}"
            )


def _made_of(classifier, made):
    """Of the facts of an evaluation those that concern a classifier."""
    return {k: v for k, v in made.items() if k != "encoder" or classifier == "transfer"}


def write_evaluation(films, folder, out, n_splits, classifiers, go_on=False, made=None):
    """Writes tables and figures of a cross-validation, none with a film's pixels in it.

    Args:
        films: The `Films` evaluated.
        folder: Folder given to `cross_validate`.
        out: Folder of `comparison.csv`, `statistics.csv`, `levels.csv` (`crossval.levels`) and
            `figures/comparison-<classifier>-*`; rows of other classifiers on the same films stay.
        n_splits: Folds a repeat.
        classifiers: Names of the classifiers, that of the primary contrast first.
        go_on: Whether to go on from the earlier repeats that `out` has: the t-tests are then of all
            folds; what is of predictions (bootstrap, McNemar, the other figures) stays.
        made: `crossval.facts_of` of the evaluation, noted in `comparison.json` by classifier, so
            that no later repeat of other settings goes on from it.

    Returns:
        `(comparison, statistics)`, the two tables.

    Raises:
        FileNotFoundError: If no fold has been evaluated there.
    """
    from kerasgan import crossval, plots

    out, n_test, classifier = Path(out), len(films) // n_splits, classifiers[0]
    predictions = crossval.read_predictions(folder, classifiers)
    comparison = crossval.scores_of(predictions, films)
    known, sizes = write_rows(out, "comparison", comparison, go_on), (len(films) - n_test, n_test)
    own = {*comparison["classifier"], "scikit-learn"}  # baselines belong to all
    comparison = known[known["classifier"].isin(own)]
    if go_on:
        predictions, figures = None, {}
    else:
        figures = _figures_of_predictions(predictions, films, classifier)
    statistics = crossval.contrasts(comparison, *sizes, predictions, classifier)
    levels = crossval.levels(comparison, *sizes, predictions)
    if go_on:
        levels = _with_pooled(out, "levels", levels)
        statistics = crossval.adjusted(_with_pooled(out, "statistics", statistics))
    if made:
        of_each = {name: _made_of(name, made) for name in classifiers}
        write_options(out / "comparison.csv", of_each)
    write_rows(out, "levels", levels, go_on)
    write_rows(out, "statistics", statistics, go_on)
    if (statistics["metric"] == "sensitivity").any():  # it needs two folds
        figures["differences"] = plots.plot_contrasts(statistics, note=films.note)
    for name, figure in figures.items():
        path = out / "figures" / f"comparison-{classifier}-{name}.png"
        plots.save_figure(figure, path)
    return comparison, statistics


def _with_pooled(out, name, table):
    """A table of folds with the rows of predictions that stand in an earlier one."""
    from kerasgan.crossval import POOLED

    before = read_table(out / f"{name}.csv", "evaluate from repeat 0")
    own = before["classifier"].isin(table["classifier"]) & before["metric"].isin(POOLED)
    return pd.concat([table, before[own]], ignore_index=True)


def _figures_of_predictions(predictions, films, classifier):
    """Confusion matrices and reliability of the primary arms and a baseline, of one repeat."""
    from kerasgan import crossval, plots, scores

    confusions, bins = {}, {}
    for arm in (crossval.PRIMARY[1], crossval.PRIMARY[0], "HOG + SVM"):
        # One repeat: a film predicted in each of many would be counted as many films.
        own = predictions.query("arm == @arm and repeat == 0 and seed == 0")
        own = own[own["classifier"].isin([classifier, "scikit-learn"])]
        if len(own):
            labels = [films.classes.index(name) for name in own["class"]]
            chances = own[[f"p_{name}" for name in films.classes]].to_numpy()
            confusions[arm] = scores.confusion(labels, chances.argmax(1), len(films.classes))
            bins[arm] = scores.calibration_table(labels, chances)
    if not confusions:
        return {}
    return {
        "confusion": plots.plot_confusion(confusions, films.classes, films.note),
        "reliability": plots.plot_reliability(bins, films.note),
    }


def write_rows(out, name, table, go_on=False):
    """Writes a table of an evaluation, beside the rows of other classifiers that stand there.

    They stay where they are of the same films and folds: where both evaluations scored a baseline
    in a fold, they found the same.

    Args:
        out: Folder of the evaluations' tables.
        name: `"comparison"`, first of all, or another, which keeps the classifiers it has.
        table: The table.
        go_on: Whether a comparison's rows of its own classifiers that it lacks stay as well, such
            as those of earlier repeats, and all rows of ensembles of these.

    Returns:
        The table as written.

    Raises:
        ValueError: If the table there is damaged or another one, or, to go on from, of other films.
    """
    path, remedy = out / f"{name}.csv", f"move {name}.csv away, and try again"
    if table.empty:
        return table
    if path.is_file():
        before = read_table(path, remedy)
        if list(before) != list(table):
            raise ValueError(f"{path} is no table of this kind: {remedy}")
        known = before if name == "comparison" else read_table(out / "comparison.csv", remedy)
        table = _beside(before, table, set(known["classifier"]), go_on)
    write_text(path, table.to_csv(index=False))
    return table


def _beside(before, table, known, go_on):
    def parts(name):
        return [name] if go_on else name.split(" + ")

    replaced = {part for name in set(table["classifier"]) for part in parts(name)}
    replaced -= {"scikit-learn"}  # baselines belong to all
    stays = np.array([replaced.isdisjoint(parts(name)) for name in before["classifier"]])
    if "data_hash" not in table:
        stays &= before["classifier"].isin(known - {"scikit-learn"}).to_numpy()
        return pd.concat([before[stays], table])
    keys = [name for name in table if name not in ("value", "data_hash")]
    if go_on:
        rows = (pd.MultiIndex.from_frame(each[keys]) for each in (before, table))
        stays |= ~next(rows).isin(next(rows))
    kept = before[stays]
    both = pd.concat([kept, table], ignore_index=True)
    values = both.groupby(keys)["value"]
    other = (values.max() - values.min() > 1e-5).any()  # processors differ by less
    if both["data_hash"].nunique() > 1 or other:
        raise ValueError("the tables there are of other films or folds: give another folder")
    return both[~both.duplicated(keys, keep="last")]


def earlier_rows(path, fitted, films, transfer=False, needed=False, made=None):
    """Reads the rows that stay in a table of `compare.reproduce` when some arms are fitted anew.

    Args:
        path: The table's path.
        fitted: Set of (arm, seed) that are fitted.
        films: The collection's `Films`.
        transfer: Whether the evaluation `transfer` is made anew, too.
        needed: Whether there must be a table, to go on from.
        made: Dict of the options, and hashes of the synthetic sets, of what is fitted; those of the
            table are in a `.json` file beside it, of one without such a file the study's.

    Returns:
        The other rows, with what was published as `compare.with_published` has it today.

    Raises:
        ValueError: If the table is damaged, or rows that stay are of other films or options.
        FileNotFoundError: If it is needed and not there.
    """
    from kerasgan.compare import with_published

    remedy = "move it away, or give another --out"
    if not path.is_file():
        if needed:
            raise FileNotFoundError(f"no {path} to go on from: run the reproduction from seed 0")
        return None
    table = read_table(path, remedy)
    if not {"data_hash", "seed", "arm", "evaluation", "class", "metric"} <= set(table):
        raise ValueError(f"{path} is no table of a reproduction: {remedy}")
    if set(table["data_hash"]) - {films.split("train").hash[:16]}:
        raise ValueError(f"{path} is of other films: {remedy}")
    keys = zip(table["arm"], table["seed"], strict=True)
    again = np.array([key in fitted for key in keys], bool)
    linear = table["evaluation"] == "transfer"
    kept = table[np.where(linear, not transfer, ~again)]
    beside = path.with_suffix(".json")
    before = read_json(beside, remedy) if beside.is_file() else STUDY
    fits = (kept["evaluation"] != "transfer").any()
    if fits and made:
        _refuse_others(f"{path} was", before, made, before.keys() & made.keys(), remedy)
    return with_published(kept, films)


def write_options(path, made):
    """Notes in a `.json` file beside a table what it was made with, beside what stands there."""
    beside = path.with_suffix(".json")
    before = read_json(beside, "move it away") if beside.is_file() else {}
    write_text(beside, json.dumps({**before, **made}, indent=2) + "\n")


def write_reproduction(films, table, folder, out):
    """Writes the figures of a reproduction, none with a film's pixels in it.

    Args:
        films: The collection's `Films`.
        table: Table of `compare.reproduce`, of the study's arms.
        folder: Folder given to it; without the main arms' seed 0 there, no confusion and history.
        out: Folder of `figures/reproduction-*.png`.
    """
    from kerasgan import compare, plots

    rows = table[table["evaluation"].isin(compare.EVALUATIONS)]
    rows = compare.with_intervals(rows, films.split("test"))
    rows["set"] = rows["arm"].str.partition(" ")[2]
    rows["arm"] = rows["arm"].str.partition(" ")[0]
    known = pd.DataFrame(map(vars, compare.REFERENCE_ARMS.values())).set_index("name")
    rows = rows.join(known, on="arm")
    # In the study's order.
    rows = rows.sort_values("arm", key=lambda arm: arm.map(known.index.get_loc), kind="stable")
    arms, figures, note = Path(folder) / "arms", {}, films.note
    for name in rows["set"].unique():
        own = rows[rows["set"].isin(["", name])]
        own = own[~own["synthetic"].astype(bool) | (own["set"] == name)]
        curve = compare.accuracy_curve(own, published=table["published"].notna().any())
        tail = f"-{name}" if name else ""
        title = f"synthetic samples: {name}" if name else ""
        figures[f"accuracy{tail}"] = plots.plot_accuracy_curve(curve, note, title)
        # By the study's own scoring, as what it published.
        scored = own[own["evaluation"] == "reference"]
        figures[f"classes{tail}"] = plots.plot_class_scores(scored, note=note, title=title)
    shown = table.loc[table["arm"].str.partition(" ")[0].isin(compare.MAIN_ARMS), "arm"].unique()
    shown = [name for name in shown if (arms / f"{name}-seed0" / "scores.csv").is_file()]
    if shown:
        matrices = {f"{name}, seed 0": compare.confusion_of(arms, name) for name in shown}
        figures["confusion"] = plots.plot_confusion(matrices, films.classes, note)
        history = compare.history_of(arms, shown[-1])
        figures["history"] = plots.plot_classifier_history(history, f"{shown[-1]}, seed 0", note)
    for name, figure in figures.items():
        plots.save_figure(figure, Path(out) / "figures" / f"reproduction-{name}.png")


def _shortcuts(run, films):
    """Warnings of models that see no lungs and score nearly as well as the run's best arm."""
    from kerasgan import crossval, scores

    train, test = run.split()
    rows = read_table(run.folder / "comparison.csv", "run notebook 04_comparison again", _NEEDS)
    found = [rows[rows["evaluation"] == "deterministic"].assign(classifier="cnn")]
    for name in crossval.BASELINES[1:]:
        chances = crossval.baseline(name, train, test)
        table = scores.classification_scores(test.labels, chances, films.classes)
        found.append(table.assign(arm=name, kind="baseline", classifier="scikit-learn"))
    return crossval.shortcut_warnings(pd.concat(found))


def _figures(run, pattern, title, text):
    paths = sorted((run.folder / "figures").glob(f"{pattern}.png"))
    images = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    return {"name": pattern.strip("-*"), "title": title, "text": text, "images": images}

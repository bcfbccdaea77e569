"""When do synthetic films help? Simulated films, whose truth is known and whose tests are large.

Run from the repository's root: `python benchmarks/when_it_helps.py --out results`. For each number
of films per class, new training sets are drawn again and again; a GAN is fitted to each, and the
gain of synthetic over as many duplicated films is measured on one large test set. A point is done
when its half-width is small enough. Finished cells are read back, so a stopped run goes on.
"""

import argparse
import os
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pandas as pd
from scipy import stats

from kerasgan import plots
from kerasgan.crossval import parallel, read_scores, run_fold
from kerasgan.mixes import Mix
from kerasgan.phantom import simulate_films
from kerasgan.runs import absolute, begin, locked, write_text

COLUMNS = ["films", "ratio", "arm", "classifier", "training_set", "class", "metric", "value"]
COLUMNS += ["data_hash"]


def arms_of(ratios):
    """The pair of arms of each ratio, equal but for where the added films come from."""
    more = {"classic": True}
    return [
        arm
        for ratio in ratios
        for arm in (
            Mix(f"duplicated {ratio:g}", "duplicated", duplicated=ratio, **more),
            Mix(f"synthetic {ratio:g}", "synthetic", synthetic=ratio, **more),
        )
    ]


def gains(table):
    """Mean paired gain in macro sensitivity over training sets, with t intervals."""
    own = table[(table["class"] == "macro") & (table["metric"] == "sensitivity")]
    own = own.assign(arm=own["arm"].str.split().str[0])
    wide = own.pivot_table("value", ["films", "ratio", "training_set"], "arm").dropna()
    rows = []
    for key, gain in (wide["synthetic"] - wide["duplicated"]).groupby(["films", "ratio"]):
        mean, n = gain.mean(), len(gain)
        half = stats.t.ppf(0.975, n - 1) * gain.sem() if n > 1 else float("inf")
        rows.append((*key, mean, mean - half, mean + half, n))
    return pd.DataFrame(rows, columns=["films", "ratio", "difference", "low", "high", "n"])


def scores_of(folder, films, test):
    """Tidy scores of one number of films per class."""
    table = read_scores(folder, test).rename(columns={"repeat": "training_set"})
    table["ratio"] = table["arm"].str.split().str[1].astype(float)
    table["classifier"] = table["classifier"].replace("transfer", "transfer on HOG")
    return table.assign(films=films)[COLUMNS]


def measure(arguments):
    """Draws training sets until every point is narrow enough; writes the table after each."""
    home = arguments.folder
    test = simulate_films(arguments.test, arguments.size, 1_000_000, test_per_class=0)
    settings = {
        "baselines": (),
        "seeds": (0,),
        "classifiers": (arguments.classifier,),
        "steps": arguments.steps,
        "batch_size": 64,
        "gan_steps": arguments.gan_steps,
        "gan_width": arguments.gan_width,
        "encoder": "hog",
    }
    arms = arms_of(arguments.ratios)
    paths = {int(path.name[5:]): path for path in home.glob("films*") if [*path.glob("*/*.csv")]}
    tables = {films: scores_of(path, films, test) for films, path in paths.items()}
    arms_known = {arm.name: asdict(arm) for arm in arms}
    begin(home, arms_known, test=test.hash, classifier=arguments.classifier, **_sizes(settings))
    open_points, first = set(arguments.films), 0
    while open_points and first < arguments.most:
        # As many sets as are wanted anyway run side by side; then one more of each open point.
        until = max(first + 1, min(arguments.least, arguments.most))
        jobs = [
            (films, training_set, arms, test, home, settings)
            for training_set in range(first, until)
            for films in sorted(open_points, reverse=True)  # the longest first
        ]
        for films in parallel(fit, jobs, arguments.jobs):
            tables[films] = scores_of(home / f"films{films}", films, test)
            table = pd.concat([tables[key] for key in sorted(tables)], ignore_index=True)
            write_text(_table(arguments), table.to_csv(index=False))
            sets, half = width(tables[films], arguments.ratios)
            print(f"{films} films per class, {sets} sets: +-{half:.3f}", flush=True)
        for films in list(open_points):
            if width(tables[films], arguments.ratios)[1] <= arguments.half_width:
                open_points.discard(films)
        first = until
    return table, test


def width(table, ratios):
    """Training sets of the table, and the greatest half-width of its gains at these ratios."""
    points = gains(table[table["ratio"].isin(ratios)])
    return points["n"].min(), ((points["high"] - points["low"]) / 2).max()


def fit(films, training_set, arms, test, home, settings):
    """Fits all arms to one training set; returns its films per class."""
    train = simulate_films(films, test.size, training_set, test_per_class=0)
    run_fold(arms, train, test, (training_set, 0), home / f"films{films}", settings)
    return films


def _table(arguments):
    """The table's path; other classifiers than the first do not write over its table and chart."""
    tail = "" if arguments.classifier == "transfer" else f"_{arguments.classifier}"
    return Path(arguments.out) / f"when_it_helps{tail}.csv"


def _sizes(settings):
    return {name: settings[name] for name in ("steps", "gan_steps", "gan_width")}


def main(words=None):
    """Runs the measurement and draws the chart."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="results", help="folder of when_it_helps.csv and figures/")
    parser.add_argument(
        "--folder", type=absolute, default="runs/when_it_helps", help="folder of finished cells"
    )
    parser.add_argument("--films", type=int, nargs="+", default=[20, 60, 200], help="per class")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 2.0])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--test", type=int, default=500, help="test films per class")
    parser.add_argument(
        "--classifier",
        default="transfer",
        choices=("transfer", "resnet", "cnn"),
        help="transfer: logistic regression on HOG features; networks are noisier",
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--gan-steps", type=int, default=1000)
    parser.add_argument("--gan-width", type=int, default=16)
    parser.add_argument("--half-width", type=float, default=0.02, help="where a point is done")
    parser.add_argument("--least", type=int, default=5, help="training sets a point, at least")
    parser.add_argument("--most", type=int, default=20, help="training sets a point, at most")
    parser.add_argument("--jobs", type=int, default=1, help="training sets at a time")
    arguments = parser.parse_args(words)
    if not 1 <= arguments.least <= arguments.most:
        parser.error("--least must be at least 1, and --most no less")
    with locked(arguments.folder):
        table, test = measure(arguments)
    figures = Path(arguments.out) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    points = gains(table)
    chart = figures / f"{_table(arguments).stem}.png"
    plots.save_figure(plots.plot_gain(points, test.note), chart)
    print(points.round(3).to_string(index=False))


if __name__ == "__main__":
    main()

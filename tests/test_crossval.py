import gc
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from kerasgan.crossval import (
    CORE_ARMS,
    PRIMARY,
    Mix,
    contrasts,
    cross_validate,
    no_lungs,
    read_predictions,
    training_sets,
)
from kerasgan.phantom import simulate_films

TINY = {"n_splits": 2, "repeats": 1, "steps": 2, "batch_size": 4, "gan_steps": 3, "gan_width": 2}
TINY["classifiers"] = ("cnn",)
ARMS = (CORE_ARMS[0], CORE_ARMS[3], CORE_ARMS[5])


@pytest.fixture(scope="module")
def films():
    return simulate_films(9, size=16, films_per_patient=2, test_per_class=0)


@pytest.fixture(scope="module")
def evaluated(films, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cv")
    return cross_validate(films, ARMS, folder, seeds=(0, 1), **TINY), folder


def test_one_row_per_arm_fold_seed_class_and_metric(evaluated):
    table, _ = evaluated
    keys = ["arm", "classifier", "repeat", "fold", "seed", "class", "metric"]
    assert not table.duplicated(keys).any()
    fitted = table[table["kind"] != "baseline"]
    assert set(fitted["arm"]) == {arm.name for arm in ARMS}
    assert (
        fitted.groupby("arm")
        .apply(lambda x: len(x[["fold", "seed"]].drop_duplicates()))
        .eq(4)
        .all()
    )
    assert {"accuracy", "auc_bac_vir", "ece", "sensitivity"} <= set(table["metric"])


def test_every_film_is_predicted_once_by_models_that_saw_no_film_of_its_patient(evaluated, films):
    predictions = read_predictions(evaluated[1])
    one = predictions.query("arm == 'real' and seed == 0")
    assert sorted(one["filename"]) == sorted(films.index["filename"])
    assert one.groupby("patient")["fold"].nunique().eq(1).all()
    for train, test in films.folds(2):
        assert not set(train.patients) & set(test.patients)


def test_a_folds_gan_is_trained_once(evaluated):
    assert len(list((evaluated[1] / "gans").iterdir())) == 2


def test_an_evaluation_goes_on_where_it_stopped(evaluated, films):
    table, folder = evaluated
    gone = sorted(folder.glob("repeat*/*real*.csv"))[0]
    others = {p: p.stat().st_mtime_ns for p in folder.glob("repeat*/*.csv") if p != gone}
    gone.unlink()
    again = cross_validate(films, ARMS, folder, seeds=(0, 1), **TINY)
    pd.testing.assert_frame_equal(again, table)
    assert all(path.stat().st_mtime_ns == time for path, time in others.items())


def test_arms_are_matched_in_count_and_class(films):
    synthetic = films.images[::-1], films.labels[::-1]
    sizes = {}
    for arm in CORE_ARMS:
        phases = training_sets(arm, films, synthetic, 0)
        assert sum(share for share, _, _ in phases) == 1
        sizes[arm.name] = [len(labels) for _, _, labels in phases]
    assert sizes["classic + duplicated"] == sizes["classic + synthetic"] == [72]
    assert sizes["real"] == sizes["classic"] == sizes["synthetic only"] == [36]
    assert sizes["synthetic, then real"] == [36, 36]
    _, images, labels = training_sets(Mix("d", "duplicated", duplicated=0.5), films, None, 1)[0]
    known = {image.tobytes() for image in films.images}
    assert all(image.tobytes() in known for image in images)
    assert np.bincount(labels).tolist() == [14] * 4


def test_the_probe_sees_no_lungs(films):
    seen = no_lungs(films.images)
    assert seen[:, 8, 8].max() == 0 and (seen[:, 0, 0] == films.images[:, 0, 0]).all()


def scores(difference, folds=10, noise=0.01, seed=0):
    rng, rows = np.random.default_rng(seed), []
    for fold in range(folds):
        base = 0.7 + rng.normal(0, 0.05)
        for arm, gain in ((PRIMARY[1], 0.0), (PRIMARY[0], difference), ("real", -0.2)):
            for metric in ("sensitivity", "accuracy"):
                value = base + gain + rng.normal(0, noise)
                rows.append((arm, "x", "cnn", fold // 5, fold % 5, 0, "macro", metric, value))
    columns = ["arm", "kind", "classifier", "repeat", "fold", "seed", "class", "metric", "value"]
    return pd.DataFrame(rows, columns=columns)


def test_a_planted_effect_is_found_and_paired():
    table = contrasts(scores(0.05), 240, 60)
    primary = table[table["primary"]]
    assert len(primary) == 1 and primary["arm"].item() == PRIMARY[0]
    assert primary["low"].item() > 0 and primary["p"].item() < 0.01
    assert abs(primary["difference"].item() - 0.05) < 0.02
    assert (table["p_adjusted"] >= table["p"] - 1e-12).all()


def test_false_positives_are_rare_on_null_data():
    gc.freeze()  # statsmodels collects garbage at every call: slow among TensorFlow's objects
    found = [
        contrasts(scores(0.0, seed=seed), 240, 60).query("primary")["p"].item() < 0.05
        for seed in range(200)
    ]
    gc.unfreeze()
    assert np.mean(found) < 0.06


def test_misuse_is_named(films, tmp_path):
    with pytest.raises(ValueError, match="names of their own"):
        cross_validate(films, [CORE_ARMS[0]] * 2, tmp_path)
    with pytest.raises(ValueError, match="fold_count"):
        cross_validate(films, folder=tmp_path, fold_count=3)
    with pytest.raises(FileNotFoundError, match="run cross_validate"):
        read_predictions(tmp_path)


def test_a_killed_evaluation_loses_nothing(films, tmp_path, evaluated):
    code = (
        "from kerasgan.crossval import *; from kerasgan import simulate_films\n"
        "films = simulate_films(9, size=16, films_per_patient=2, test_per_class=0)\n"
        "arms = CORE_ARMS[0], CORE_ARMS[3], CORE_ARMS[5]\n"
        f"cross_validate(films, arms, {str(tmp_path / 'cv')!r}, seeds=(0, 1), **{TINY!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("cv/repeat*/*.csv"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    table = cross_validate(films, ARMS, tmp_path / "cv", seeds=(0, 1), **TINY)
    pd.testing.assert_frame_equal(table, evaluated[0])


def test_the_evaluation_runs_on_a_dask_cluster(films, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        table = cross_validate(
            films, ARMS[:1], tmp_path, scheduler=cluster.scheduler_address, **TINY
        )
    assert set(table["fold"]) == {0, 1}

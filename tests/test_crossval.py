import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kerasgan import classify
from kerasgan.crossval import (
    PRIMARY,
    contrasts,
    cross_validate,
    detectable,
    fold_gan,
    levels,
    read_predictions,
    run_fold,
    shortcut_warnings,
    source_confusion,
)
from kerasgan.mixes import CORE_ARMS, FURTHER_ARMS, PROBES, Mix, Samples, no_lungs, training_sets
from kerasgan.networks import build_resnet
from kerasgan.phantom import simulate_films
from kerasgan.scores import classification_scores
from kerasgan.store import save_classifier

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


def test_what_is_fitted_sees_the_training_fold_alone(films, tmp_path, monkeypatch):
    fit, seen = classify.fit_steps, []

    def watched(name, phases, *options):
        seen.append({image.tobytes() for _, images, _ in phases for image in images})
        return fit(name, phases, *options)

    monkeypatch.setattr(classify, "fit_steps", watched)
    arms = (ARMS[0], Mix("pretrained", "synthetic", classic=True, synthetic=1.0))
    cross_validate(films, arms, tmp_path, **TINY | {"baselines": ()})
    folds = list(films.folds(2))
    for i, (train, test) in enumerate(folds):
        real, added = seen[2 * i : 2 * i + 2]
        assert real == {image.tobytes() for image in train.images}
        assert not added & {image.tobytes() for image in test.images} and len(added) > len(real)
    settings = tmp_path.glob("gans/*/settings.json")
    trained = {json.loads(path.read_text())["facts"]["films"] for path in settings}
    assert trained == {train.hash for train, _ in folds}


def test_later_repeats_come_alone_and_are_those_of_all(films, tmp_path):
    options = TINY | {"baselines": (), "repeats": 2}
    later = cross_validate(films, ARMS[:1], tmp_path / "later", **options, first_repeat=1)
    assert set(later["repeat"]) == {1}
    every = cross_validate(films, ARMS[:1], tmp_path / "every", **options)
    own = every[every["repeat"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(later.reset_index(drop=True), own)


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


def test_transfer_and_its_ensemble_join_a_finished_evaluation(films, tmp_path):
    import keras

    image = keras.Input((64, 64, 1))
    maps = keras.layers.AveragePooling2D(16)(image)
    encoder = keras.Model(image, keras.layers.Flatten()(maps), name="pixels")
    encoder.save(tmp_path / "pixels.keras")
    more = {**TINY, "classifiers": ("cnn", "transfer")}
    with pytest.raises(ValueError, match="transfer needs encoder="):
        cross_validate(films, ARMS, tmp_path / "cv", **more)
    needless = cross_validate(films, ARMS[:1], tmp_path / "hog", **more, encoder="hog")
    assert "transfer" in set(needless["classifier"]), "no weights are needed"
    cross_validate(films, ARMS, tmp_path / "cv", **TINY)
    more["encoder"] = tmp_path / "pixels.keras"
    table = cross_validate(films, ARMS, tmp_path / "cv", **more)
    mixed = {arm.name for arm in ARMS if arm.schedule == "mixed"}
    for name in ("transfer", "cnn + transfer"):
        assert set(table.loc[table["classifier"] == name, "arm"]) == mixed
    chances = read_predictions(tmp_path / "cv").query("arm == 'real'")
    chances = chances.pivot_table("p_covid", "filename", "classifier")
    mean = chances[["cnn", "transfer"]].mean(axis=1)
    np.testing.assert_allclose(chances["cnn + transfer"], mean)
    other = keras.Model(image, keras.layers.Flatten()(maps), name="others")
    other.save(tmp_path / "pixels.keras")
    with pytest.raises(ValueError, match="begun with encoder="):
        cross_validate(films, ARMS, tmp_path / "cv", **more)


def test_a_damaged_cell_is_named(tmp_path):
    (tmp_path / "repeat0-fold0").mkdir()
    for content in (b"", b'a,b\n"1', b"arm,fold\n", b"\xff\xfe\x00"):
        (tmp_path / "repeat0-fold0" / "real--cnn--0.csv").write_bytes(content)
        with pytest.raises(ValueError, match="real--cnn--0.csv.*delete it"):
            read_predictions(tmp_path)


def test_a_stopped_evaluation_leaves_whole_folds(films, tmp_path):
    def stop(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_validate(films, ARMS[:1], tmp_path, on_fold=stop, **TINY)
    first = read_predictions(tmp_path)
    assert set(first["fold"]) == {0} and set(first["arm"]) == {
        "real",
        "HOG + SVM",
        "border only",
        "histogram only",
    }
    seen = []
    cross_validate(films, ARMS[:1], tmp_path, on_fold=seen.append, **TINY)
    assert seen == [tmp_path], "the first fold was not run again"


def test_a_folder_refuses_other_settings_and_takes_further_arms(evaluated, films):
    _, folder = evaluated
    with pytest.raises(ValueError, match="begun with steps=2.*steps=3"):
        cross_validate(films, ARMS, folder, **{**TINY, "steps": 3})
    with pytest.raises(ValueError, match="begun with films"):
        cross_validate(films.first(8), ARMS, folder, **TINY)
    strangers = replace(films, index=films.index.assign(patient=""))
    with pytest.raises(ValueError, match="begun with patients"):
        cross_validate(strangers, ARMS, folder, **TINY)
    with pytest.raises(ValueError, match="begun with real="):
        cross_validate(films, [Mix("real", "real", duplicated=1)], folder, **TINY)


@pytest.mark.parametrize(
    ("chosen", "gans"),
    [
        (("realistic samples", "no covid films"), 1),
        (("held samples", "real + held samples", "classic + synthetic x 0.25"), 2),
        pytest.param(("per-class GANs",), 4, marks=pytest.mark.slow),
    ],
)
def test_further_arms_and_probes_run(films, tmp_path, chosen, gans):
    arms = [arm for arm in (*FURTHER_ARMS, *PROBES) if arm.name in chosen]
    train, test = next(films.folds(2))
    settings = {**TINY, "gan_steps": 4, "baselines": (), "seeds": (0,)}
    run_fold(arms, train, test, (0, 0), tmp_path, settings)
    predictions = read_predictions(tmp_path)
    assert set(predictions["arm"]) == set(chosen)
    assert len(list((tmp_path / "gans").iterdir())) == gans
    if "no covid films" in chosen:
        taken = source_confusion(predictions)
        assert taken.sum() == pytest.approx(1) and "covid" not in taken
    else:
        assert source_confusion(predictions).empty, "the probe was not run"


def test_what_cannot_run_is_refused_before_anything_is_noted(films, tmp_path):
    with pytest.raises(ValueError, match="ask for fewer folds"):
        cross_validate(films, ARMS, tmp_path / "cv", **{**TINY, "n_splits": 6})
    model = build_resnet(16, width=2)
    save_classifier(model, tmp_path / "encoder", films, seed=0)
    seen = next(iter((tmp_path / "encoder").glob("*.keras")))
    with pytest.raises(ValueError, match="trained on patients of these films"):
        cross_validate(films, ARMS, tmp_path / "cv", gan_encoder=seen, **TINY)
    for wrong in ({"classifiers": "resnet"}, {"classifiers": ["vit"]}, {"baselines": ["HOG"]}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} are several of"):
            cross_validate(films, ARMS, tmp_path / "cv", **TINY | wrong)
    assert not (tmp_path / "cv").exists()


def test_two_classes_have_no_probe_that_leaves_one_out(films, tmp_path):
    two = films.only("covid", "normal")
    options = {**TINY, "classifiers": ("transfer",), "encoder": "hog", "baselines": ()}
    table = cross_validate(two, [CORE_ARMS[0], *PROBES], tmp_path, **options)
    assert set(table["arm"]) == {"real", "no lungs"}


def test_levels_count_each_film_once_and_have_intervals(evaluated, films):
    table, folder = evaluated
    predictions = read_predictions(folder)
    sizes = len(films) // 2, len(films) // 2
    both = levels(table, *sizes, predictions)
    folds = both[both["metric"].isin(["sensitivity", "specificity", "auc_bac_vir"])]
    pd.testing.assert_frame_equal(folds, levels(table, *sizes))
    real = table.query("arm == 'real' and `class` == 'macro' and metric == 'sensitivity'")
    own = folds.query("arm == 'real' and metric == 'sensitivity'")
    assert own["value"].to_numpy() == pytest.approx(
        real.groupby("classifier", sort=False)["value"].mean().to_numpy()
    )
    assert folds["low"].ge(0).all() and folds["high"].le(1).all()
    found = both.drop(index=folds.index)
    assert len(found) == 2 * predictions[["arm", "classifier"]].drop_duplicates().shape[0]
    assert set(found["n"]) == {len(films)}
    assert (found["low"] <= found["value"]).all() and (found["value"] <= found["high"]).all()
    one = predictions.query("arm == 'HOG + SVM'")
    chances = one[[f"p_{name}" for name in films.classes]].to_numpy()
    labels = [films.classes.index(name) for name in one["class"]]
    scores = classification_scores(labels, chances, films.classes).query("`class` == 'macro'")
    scores = scores.set_index("metric")["value"]
    own = found.query("arm == 'HOG + SVM'").set_index("metric")["value"]
    own = own.rename(lambda name: name.removesuffix("_bootstrap"))
    assert own.to_dict() == pytest.approx(scores[own.index].to_dict())


def test_a_fold_gan_can_be_judged_by_an_encoder(films, tmp_path, small_encoder):
    small_encoder().save(tmp_path / "encoder.keras")
    judged = {**TINY, "gan_steps": 2, "gan_encoder": tmp_path / "encoder.keras"}
    cross_validate(films, ARMS[-1:], tmp_path / "cv", baselines=(), **judged)
    assert ARMS[-1].name in set(read_predictions(tmp_path / "cv")["arm"])
    gan = fold_gan(films, 2, tmp_path / "gans", 4, tmp_path / "encoder.keras", held=True)
    assert (gan.moments, gan.hog) == (2.0, 4.0), "as registered"
    with pytest.raises(ValueError, match="no GAN is judged by hog"):
        cross_validate(films, ARMS[-1:], tmp_path / "cv", **{**judged, "gan_encoder": "hog"})
    with pytest.raises(ValueError, match="begun with gan_encoder="):
        cross_validate(films, ARMS[-1:], tmp_path / "cv", **TINY | {"gan_steps": 2})


def drawn_for(films, ratio):
    rng, labels = np.random.default_rng(0), np.repeat(range(4), 9 * ratio)
    images = rng.integers(0, 255, (len(labels), 16, 16, 1), np.uint8)
    return Samples(images, labels, rng.normal(size=len(labels)))


def test_arms_are_matched_in_count_and_class(films):
    sizes = {}
    for arm in (*CORE_ARMS, *FURTHER_ARMS):
        phases = training_sets(arm, films, drawn_for(films, 4), 0)
        assert sum(share for share, _, _ in phases) == 1
        sizes[arm.name] = [len(labels) for _, _, labels in phases]
        assert (
            all(np.bincount(labels).tolist() == [len(labels) // 4] * 4 for *_, labels in phases)
            or arm.schedule == "annealed"
        )
    assert sizes["classic + duplicated"] == sizes["classic + synthetic"] == [72]
    assert sizes["confident samples"] == sizes["realistic samples"] == [72]
    assert sizes["real"] == sizes["classic"] == sizes["synthetic only"] == [36]
    assert sizes["synthetic, then real"] == [36, 36]
    assert sizes["classic + synthetic x 0.25"] == [36 + 4 * 3]
    assert sizes["classic + synthetic x 4"] == [5 * 36]
    assert sizes["synthetic, annealed"] == [72, 60, 48, 36]
    _, images, labels = training_sets(Mix("d", "duplicated", duplicated=0.5), films, None, 1)[0]
    known = {image.tobytes() for image in films.images}
    assert all(image.tobytes() in known for image in images)
    assert np.bincount(labels).tolist() == [14] * 4


def test_filters_keep_the_better_half(films):
    samples = drawn_for(films, 2)
    realistic = Mix("r", "synthetic", synthetic=1, originals=False, keep="realistic")
    _, images, labels = training_sets(realistic, films, samples, 0)[0]
    kept = {image.tobytes() for image in images}
    for label in range(4):
        own = samples.labels == label
        flags = [image.tobytes() in kept for image in samples.images[own]]
        assert samples.realism[own][flags].min() > samples.realism[own][np.invert(flags)].max()
    # Half of each class's samples are films of another class: the confident half has fewer.
    wrong = (films.labels + 1) % 4
    mixed = Samples(
        np.concatenate([films.images] * 2), np.concatenate([wrong, films.labels]), np.zeros(72)
    )
    confident = Mix("c", "synthetic", synthetic=1, originals=False, keep="confident")
    _, images, labels = training_sets(confident, films, mixed, 0)[0]
    right = {
        (image.tobytes(), label) for image, label in zip(films.images, films.labels, strict=True)
    }
    assert np.mean([(i.tobytes(), k) in right for i, k in zip(images, labels, strict=True)]) > 0.9


def test_a_class_can_be_left_out(films):
    _, _, labels = training_sets(PROBES[1], films, None, 0)[0]
    assert films.classes.index("covid") not in labels and len(labels) == 27
    twice = Mix("x", "duplicated", duplicated=1, without="covid")
    _, _, labels = training_sets(twice, films, None, 0)[0]
    assert films.classes.index("covid") not in labels and len(labels) == 54


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


def predicted(effect, rng, patients=60, repeats=2):
    """Predictions of two arms, right on the same films by and large; patients have 1 to 3 films."""
    rows, n = [], rng.integers(1, 4, 4 * patients)
    patient = np.repeat(np.arange(len(n)), n)
    label = patient % 4
    hard = np.repeat(rng.normal(0, 1, len(n)), n) + rng.normal(0, 0.5, len(patient))
    for repeat in range(repeats):
        for arm, gain in ((PRIMARY[1], 0.0), (PRIMARY[0], effect)):
            luck = rng.normal(0, 0.7, len(patient))
            right = hard + luck < 0.8 + gain
            chances = np.full((len(patient), 4), 0.1)
            chances[np.arange(len(patient)), np.where(right, label, (label + 1) % 4)] = 0.7
            table = pd.DataFrame(chances, columns=[f"p_{i}" for i in range(4)])
            table = table.assign(arm=arm, classifier="cnn", repeat=repeat, fold=0, seed=0)
            rows.append(table.assign(**{"class": label.astype(str), "patient": patient}))
    return pd.concat([rows[i].assign(filename=rows[i].index) for i in range(len(rows))])


def pooled(effect, seed):
    from kerasgan.crossval import _pooled

    predictions = predicted(effect, np.random.default_rng(seed))
    return {row[0]: row[1:] for row in _pooled(predictions, *PRIMARY)}


def test_pooled_predictions_cover_the_null_and_find_a_planted_effect():
    gc.freeze()
    null = [pooled(0.0, seed) for seed in range(60)]
    bootstrap = [row["sensitivity_bootstrap"] for row in null]
    assert np.mean([low <= 0 <= high for _, low, high, *_ in bootstrap]) > 0.86
    assert np.mean([row["accuracy_mcnemar"][3] < 0.05 for row in null]) < 0.12
    planted = [pooled(0.5, seed) for seed in range(10)]
    gc.unfreeze()
    assert all(row["sensitivity_bootstrap"][1] > 0 for row in planted)
    assert np.mean([row["accuracy_mcnemar"][3] < 0.05 for row in planted]) > 0.8


def test_statistics_hold_both_kinds_of_rows_and_test_no_baseline():
    table, predictions = scores(0.05), predicted(0.5, np.random.default_rng(0))
    table.loc[table["arm"] == "real", "kind"] = "baseline"
    found = contrasts(table, 240, 60, predictions).set_index(["arm", "metric"])
    own = found.loc[PRIMARY[0]]
    assert own.loc["sensitivity_bootstrap", "n"] == len(predictions) / 4
    assert own.loc["accuracy_mcnemar", "p_adjusted"] >= own.loc["accuracy_mcnemar", "p"]
    assert own["primary"].tolist() == [name == "sensitivity" for name in own.index]
    assert found.loc["real"]["p"].isna().all() and found.loc["real"]["low"].notna().all()


def test_arms_are_paired_by_the_repeats_and_seeds_that_both_have():
    table, predictions = scores(0.0, noise=0.0), predicted(0.0, np.random.default_rng(0))
    same = predictions[predictions["arm"] == PRIMARY[1]]
    again = same.assign(arm=PRIMARY[0])  # one arm twice, of which one repeat alone is there
    predictions = pd.concat([same, again[again["repeat"] == 1]])
    worse = table[table["arm"] == PRIMARY[1]].assign(seed=1)
    worse["value"] -= 0.5  # a seed of the control alone
    found = contrasts(pd.concat([table, worse]), 240, 60, predictions)
    own = found[found["arm"] == PRIMARY[0]].set_index("metric")
    assert own["difference"].abs().max() < 1e-9 and own.loc["accuracy_mcnemar", "p"] == 1


def test_with_two_classes_specificity_is_not_tested_beside_sensitivity():
    table = scores(0.05)
    table = pd.concat([table, table.query("metric == 'sensitivity'").assign(metric="specificity")])
    of_classes = [table.assign(**{"class": name}) for name in ("a", "b", "c")]
    tested = [
        contrasts(pd.concat([table, *of_classes[:n]]), 240, 60).set_index("metric")["p"].notna()
        for n in (2, 3)
    ]
    assert not tested[0]["specificity"].any() and tested[1]["specificity"].all()
    assert tested[0]["sensitivity"].all() and tested[1]["sensitivity"].all()


def test_the_detectable_effect_shrinks_with_folds_and_grows_with_noise():
    few, many = (detectable(scores(0.0, folds), 240, 60, "cnn") for folds in (5, 25))
    assert 0 < many < few < detectable(scores(0.0, 5, noise=0.05), 240, 60, "cnn")


def test_a_probe_that_nearly_reaches_the_best_is_warned_of():
    columns = ["arm", "kind", "classifier", "class", "metric", "value"]
    rows = [("real", "real", "cnn", "macro", "sensitivity", 0.8)]
    rows += [("real", "real", "transfer", "macro", "sensitivity", 0.99)]
    rows += [("real", "real", "transfer", "macro", "auc_bac_vir", 0.8)]
    rows += [("border only", "baseline", "scikit-learn", "macro", "sensitivity", 0.75)]
    rows += [("border only", "baseline", "scikit-learn", "macro", "auc_bac_vir", 0.6)]
    rows += [("histogram only", "baseline", "scikit-learn", "macro", "auc_bac_vir", 0.79)]
    rows += [("no lungs", "baseline", "cnn", "macro", "sensitivity", 0.5)]
    rows += [("real", "real", "cnn", name, "sensitivity", 0.8) for name in "abcd"]
    of_one, of_kinds = shortcut_warnings(pd.DataFrame(rows, columns=columns))
    assert "border only: macro sensitivity 0.750" in of_one and "of cnn 0.800" in of_one
    assert "histogram only: AUC" in of_kinds and "of transfer 0.800" in of_kinds


def test_false_positives_are_rare_on_null_data():
    gc.freeze()  # statsmodels collects garbage at every call: slow among TensorFlow's objects
    found = [
        contrasts(scores(0.0, seed=seed), 240, 60).query("primary")["p"].item() < 0.05
        for seed in range(200)
    ]
    gc.unfreeze()
    assert np.mean(found) < 0.06


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "sinthetic"},
        {"schedule": "frist"},
        {"keep": "best"},
        {"synthetic": -1},
        {"synthetic": np.nan},
        {"schedule": "annealed"},  # with nothing to anneal away
        {"originals": False},
        {"originals": False, "synthetic": 1, "schedule": "first"},
    ],
)
def test_an_arm_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="mine: "):
        Mix("mine", **{"kind": "synthetic", **wrong})


def test_unknown_patients_are_said(films, tmp_path, capsys):
    index = films.index.assign(patient="")
    unknown = replace(films, index=index, _pixels=dict(films._pixels))
    cross_validate(unknown, (), tmp_path, n_splits=2, repeats=1, baselines=("border only",))
    assert "are not known, so each counts as a patient" in capsys.readouterr().out


def test_misuse_is_named(films, tmp_path):
    with pytest.raises(ValueError, match="names of their own"):
        cross_validate(films, [CORE_ARMS[0]] * 2, tmp_path)
    twins = films.take(np.r_[0, : len(films)])
    with pytest.raises(ValueError, match="is there twice, of one patient"):
        cross_validate(twins, folder=tmp_path)
    with pytest.raises(ValueError, match="fold_count"):
        cross_validate(films, folder=tmp_path, fold_count=3)
    with pytest.raises(FileNotFoundError, match="run cross_validate"):
        read_predictions(tmp_path)


def test_a_killed_evaluation_loses_nothing(films, tmp_path, evaluated):
    code = (
        "from kerasgan import CORE_ARMS, cross_validate, simulate_films\n"
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


def test_a_dask_worker_killed_midway_loses_nothing(films, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    found, settings = [], {**TINY, "seeds": (0, 1)}
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        with distributed.Client(address) as client:
            workers = list(client.run(os.getpid).values())

        def evaluate():
            found.append(cross_validate(films, ARMS[:2], tmp_path, scheduler=address, **settings))

        run = threading.Thread(target=evaluate)
        run.start()
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("repeat*/*.csv")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert run.is_alive(), "killed midway, not after the end"
        os.kill(workers[0], signal.SIGKILL)
        before = {path: path.read_bytes() for path in tmp_path.glob("repeat*/*.csv")}
        run.join(300)
    assert before and all(path.read_bytes() == text for path, text in before.items())
    cells = found[0].groupby(["arm", "fold", "seed"]).size()
    assert len(cells) == 2 * (3 + 4) and cells.eq(29).all()
    assert len(list((tmp_path / "gans").iterdir())) == 2, "one a fold, shared by the seeds"

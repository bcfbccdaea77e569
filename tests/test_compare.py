from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from kerasgan.compare import (
    PUBLISHED_ACCURACY,
    REFERENCE_ARMS,
    Arm,
    accuracy_curve,
    compare_arms,
    confusion_of,
    double_softmax_loss,
    fit_classifier,
    history_of,
    plan,
    predict,
    published_value,
    reference_arms,
    reproduce,
    reproduce_by_transfer,
    seed_noise,
)
from kerasgan.films import Films
from kerasgan.networks import build_classifier
from kerasgan.report import earlier_rows, write_options, write_reproduction
from kerasgan.synthesis import classic_set

SHORT = {"epochs": 3, "batches": 2, "passes": 4}


@pytest.fixture(scope="module")
def sides(films16):
    return films16.train_test()


@pytest.fixture(scope="module")
def compared(sides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    classic = classic_set(sides[0], 8, folder / "classic")
    arms = [Arm("O1", "real"), Arm("O1+C1", "classic", 8), Arm("mixed", "synthetic", 4, 3)]
    table = compare_arms(arms, *sides, classic, classic, folder / "arms", seeds=(0, 1), **SHORT)
    return table, folder / "arms", arms, classic


def test_the_reference_arms_are_the_nine():
    assert list(REFERENCE_ARMS) == list(PUBLISHED_ACCURACY)
    best = REFERENCE_ARMS["O1+C3+G3"]
    assert (best.classic, best.synthetic, best.kind) == (2000, 1000, "synthetic")
    assert reference_arms((1, 2, 3, 4), (5, 6, 7, 8))["O1+C3+G2"].synthetic == 6


def test_double_softmax_cannot_fall_below_the_studys_bound():
    logits = tf.constant([[100.0, 0, 0, 0]])
    assert float(double_softmax_loss(tf.constant([0]), logits)[0]) == pytest.approx(
        0.7437, abs=1e-3
    )


def test_a_training_through_two_softmaxes_has_their_bound(sides):
    keras.utils.set_random_seed(0)
    train, rest = sides[0], {"epochs": 30, "batch_size": 16, "double_softmax": True}
    history = fit_classifier(build_classifier(16, 4), train.images, train.labels, **rest)
    assert 0.743 < history["loss"].min() < 1


def test_the_classifier_learns_what_is_easy(sides):
    keras.utils.set_random_seed(0)
    model = build_classifier(16, 4)
    train, test = sides
    history = fit_classifier(model, train.images, train.labels, epochs=40, batch_size=16)
    assert history["accuracy"].iloc[-5:].mean() > 0.8
    assert (predict(model, test.images).argmax(1) == test.labels).mean() > 0.6


def test_watching_the_test_films_changes_nothing(sides):
    def trained(**options):
        keras.utils.set_random_seed(0)
        model = build_classifier(16, 4)
        train = sides[0]
        fit_classifier(model, train.images, train.labels, 4, 2, 8, seed=3, **options)
        return model.get_weights()

    watched = trained(validation=(sides[1].images, sides[1].labels))
    for a, b in zip(trained(), watched, strict=True):
        np.testing.assert_array_equal(a, b)


def test_both_evaluations_leave_the_model_as_it_was(sides):
    keras.utils.set_random_seed(0)
    model = build_classifier(16, 4)
    images = sides[1].images
    before = [np.array(value) for value in model.get_weights()]
    one = predict(model, images)
    many = predict(model, images, "reference", passes=5)
    assert one.shape == (16, 4) and many.shape == (5, 16, 4)
    np.testing.assert_allclose(one.sum(1), 1, rtol=1e-5)
    assert np.abs(many[0] - many[1]).max() > 0  # dropout was on
    np.testing.assert_array_equal(one, predict(model, images))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="deterministic"):
        predict(model, images, "best")


def test_the_table_is_tidy(compared, sides):
    table, _, arms, _ = compared
    assert set(table["arm"]) == {arm.name for arm in arms} and set(table["seed"]) == {0, 1}
    keys = ["arm", "seed", "evaluation", "class", "metric"]
    assert not table.duplicated(keys).any()
    assert (table["data_hash"] == sides[0].hash[:16]).all()
    accuracy = table[(table["metric"] == "accuracy") & (table["class"] == "macro")]
    assert len(accuracy) == 12 and (accuracy["n"] == 16).all()
    assert ((accuracy["low"] <= accuracy["value"]) & (accuracy["value"] <= accuracy["high"])).all()


def test_finished_arms_are_read_back_and_missing_ones_fitted(compared, sides):
    table, folder, arms, classic = compared
    gone = folder / "O1-seed1" / "scores.csv"
    kept = (folder / "O1-seed0" / "scores.csv").stat().st_mtime_ns
    gone.unlink()
    again = compare_arms(arms, *sides, classic, classic, folder, seeds=(0, 1), **SHORT)
    pd.testing.assert_frame_equal(again, table)
    assert gone.is_file() and (folder / "O1-seed0" / "scores.csv").stat().st_mtime_ns == kept


def test_a_finished_arm_is_not_taken_for_one_of_other_films_or_options(compared, sides):
    _, folder, arms, classic = compared
    with pytest.raises(ValueError, match="begun with epochs=3"):
        compare_arms(arms, *sides, classic, classic, folder, **{**SHORT, "epochs": 4})
    with pytest.raises(ValueError, match="begun with batches=2.*batches=4"):
        compare_arms(arms, *sides, classic, classic, folder, epochs=3, passes=4)
    others = sides[0].take(range(8, len(sides[0])))
    with pytest.raises(ValueError, match="begun with films"):
        compare_arms(arms[:1], others, sides[1], folder=folder, **SHORT)


def test_confusion_and_history_of_an_arm(compared, sides):
    table, folder, _, _ = compared
    matrix = confusion_of(folder, "O1", 0)
    assert matrix.sum(1).tolist() == [4, 4, 4, 4]
    row = table.query(
        "arm == 'O1' and seed == 0 and evaluation == 'deterministic' "
        "and metric == 'accuracy' and `class` == 'macro'"
    )
    assert row["value"].item() == pytest.approx(np.trace(matrix) / 16)
    assert list(history_of(folder, "O1")["epoch"]) == [1, 2, 3]
    with pytest.raises(FileNotFoundError, match="fit arm O9"):
        history_of(folder, "O9")


def test_the_curve_counts_what_each_kind_adds(compared):
    curve = accuracy_curve(compared[0], published=True)
    assert curve.groupby("arm")["count"].first().to_dict() == {"O1": 0, "O1+C1": 8, "mixed": 3}
    assert curve[curve["arm"] == "O1"]["published"].eq(0.769).all()
    assert accuracy_curve(compared[0])["published"].isna().all()


def test_a_patient_on_both_sides_is_refused_but_by_the_studys_name(films16, tmp_path):
    train, test = films16.split("train"), films16.split("test")
    arms = [Arm("O1", "real")]
    with pytest.raises(ValueError, match="both sides of the split: p0-6"):
        compare_arms(arms, train, test, **SHORT)
    table = compare_arms(arms, train, test, protocol="reference", **SHORT)
    assert (table["protocol"] == "reference").all()


def test_sets_that_do_not_fit_an_arm_are_named(compared, sides):
    _, _, _, classic = compared
    with pytest.raises(ValueError, match="needs 99 classic"):
        compare_arms([Arm("x", "classic", 99)], *sides, classic, **SHORT)
    with pytest.raises(ValueError, match="needs a synthetic set"):
        compare_arms([Arm("x", "synthetic", 0, 1)], *sides, classic, **SHORT)
    with pytest.raises(ValueError, match="one length"):
        fit_classifier(build_classifier(16), sides[0].images, sides[0].labels[1:])


def test_misspelt_options_and_arms_are_named(sides, tmp_path):
    train, test = sides
    with pytest.raises(TypeError, match="epoch"):
        compare_arms([Arm("O1", "real")], train, test, folder=tmp_path, epoch=1)
    with pytest.raises(ValueError, match="names of their own"):
        compare_arms([Arm("O1", "real")] * 2, train, test, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    for wrong in (("bogus", 24), ("real", 24), ("classic", 0), ("synthetic", 8, 0)):
        with pytest.raises(ValueError, match="arms are real, classic"):
            Arm("mine", *wrong)
    model = build_classifier(16, 4)
    with pytest.raises(TypeError, match="doublesoftmax"):
        fit_classifier(model, train.images, train.labels, doublesoftmax=True)
    with pytest.raises(ValueError, match="labels must be integers of 0 to 3"):
        fit_classifier(model, train.images, train.labels + 4)


def test_a_classifier_of_other_images_is_not_gone_on_with(sides, tmp_path):
    train, _ = sides
    options = {"epochs": 1, "batches": 1, "folder": tmp_path}
    fit_classifier(build_classifier(16, 4), train.images, train.labels, **options)
    for images, changes in ((255 - train.images, {}), (train.images, {"seed": 1})):
        with pytest.raises(ValueError, match="was begun with"):
            fit_classifier(build_classifier(16, 4), images, train.labels, **options, **changes)


def test_published_values_average_to_the_published_means():
    for arm, metrics in (("O1+C3", (0.827, 0.943)), ("O1+C3+G3 ours", (0.907, 0.969))):
        for metric, mean in zip(("sensitivity", "specificity"), metrics, strict=True):
            kinds = ("covid", "normal", "pneumonia_bac", "pneumonia_vir")
            values = [published_value(arm, kind, metric) for kind in kinds]
            assert np.mean(values) == pytest.approx(mean, abs=6e-4)
            assert published_value(arm, "macro", metric) == mean
    assert published_value("O1+C4", "macro", "accuracy") == 0.820
    assert np.isnan(published_value("O1+C4", "macro", "f1"))


@pytest.fixture(scope="module")
def reproduced(films16, tmp_path_factory):
    folder, written = tmp_path_factory.mktemp("reproduction"), []
    images = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 1), np.uint8)
    samples = Films.from_arrays(images, np.repeat(range(4), 2), films16.classes)
    few, study = ("O1", "O1+C3", "O1+C3+G1"), replace(films16, name="covid-xray-64")
    arms = {k: arm for k, arm in reference_arms((2, 4, 6, 8), (1, 2, 3, 4)).items() if k in few}
    job = (study, folder, {"": samples, "ours": samples}, 2, written.append)
    return reproduce(*job, arms=arms, **SHORT), folder, written, (job, arms)


def test_the_reproduction_runs_all_arms_once_and_the_main_ones_again(reproduced):
    table, _, written, _ = reproduced
    assert list(table) == [
        *("arm", "seed", "evaluation", "class", "metric", "value", "published", "data_hash")
    ]
    seeds = table.groupby("arm")["seed"].nunique().to_dict()
    assert seeds == {"O1": 2, "O1+C3": 2, "O1+C3+G1": 1, "O1+C3+G1 ours": 1}
    assert set(table["evaluation"]) == {"deterministic", "reference"}
    accuracy = table[table["metric"] == "accuracy"].set_index("arm")["published"]
    assert accuracy["O1+C3"].eq(0.827).all() and accuracy["O1+C3+G1 ours"].eq(0.874).all()
    sizes = [len(each) for each in written]
    assert len(sizes) == 6 and sizes == sorted(sizes) and sizes[-1] == len(table)


def test_a_reproduction_is_read_back_and_refuses_other_options(reproduced):
    table, folder, _, (job, arms) = reproduced
    again = reproduce(*job[:4], arms=arms, **SHORT)
    pd.testing.assert_frame_equal(again, table)
    with pytest.raises(ValueError, match="double_softmax=True"):
        reproduce(*job[:4], arms=arms, double_softmax=False, **SHORT)


def test_a_reproduction_goes_on_from_an_earlier_table(reproduced, films16, tmp_path):
    table, _, _, ((films, _, sets, *_), arms) = reproduced
    further = reproduce(films, tmp_path, sets, range(1, 2), arms=arms, **SHORT)
    expected = table[table["seed"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(further, expected, atol=0.26)  # one film of a class of four
    (path := tmp_path / "reproduction.csv").write_text(table.to_csv(index=False))
    fitted = {(arm.name, seed) for arm, seed, _ in plan(arms, sets, range(1, 2), ["O1+C3"])}
    assert fitted == {("O1+C3", 1)}
    others = earlier_rows(path, fitted, films16).groupby("arm")["seed"].max()
    assert others["O1"] == 1 and others["O1+C3"] == 0
    linear = table.assign(evaluation="transfer")
    pd.concat([table, linear]).to_csv(path, index=False)
    assert len(earlier_rows(path, fitted, films16)) > len(table)
    assert set(earlier_rows(path, fitted, films16, transfer=True)["evaluation"]) == {
        *table["evaluation"]
    }
    options = {"arms": arms, "again": ["O1+C3+G1"], **SHORT}
    chosen = reproduce(films, tmp_path, sets, range(1, 2), **options)
    assert set(chosen["arm"]) == {"O1+C3+G1", "O1+C3+G1 ours"} and set(chosen["seed"]) == {1}
    with pytest.raises(ValueError, match="arms are .* Received: .'O9'"):
        reproduce(films, tmp_path, sets, again=["O9"])
    with pytest.raises(ValueError, match="of other films"):
        earlier_rows(path, fitted, films16.take(range(1, len(films16))))
    with pytest.raises(FileNotFoundError, match="from seed 0"):
        earlier_rows(tmp_path / "none.csv", fitted, films16, needed=True)
    assert earlier_rows(tmp_path / "none.csv", fitted, films16) is None
    made = {"epochs": 750, "passes": 100, "synthetic": "a"}
    for now in {"epochs": 9}, {"synthetic": "b"}:
        with pytest.raises(ValueError, match="was made with .* give another --out"):
            earlier_rows(path, fitted, films16, made={**made, **now})
        write_options(path, made)


def test_a_linear_model_learns_from_the_same_arms(reproduced):
    table, folder, _, ((films, _, sets, *_), arms) = reproduced
    seen = []

    def pixels(images):
        seen.append(len(images))
        return images.reshape(len(images), -1).astype(float)

    fast = reproduce_by_transfer(films, folder, sets, pixels, arms)
    assert list(fast) == list(table) and set(fast["evaluation"]) == {"transfer"}
    assert set(fast["arm"]) == set(table["arm"]) and set(fast["seed"]) == {0}
    assert fast.query("arm == 'O1' and metric == 'accuracy'")["published"].item() == 0.769
    assert fast["data_hash"].unique() == table["data_hash"].unique()
    films_and_mirrors = len(films) + len(films.split("test"))
    assert sum(seen) <= films_and_mirrors + 6 * 4 + 2 * 4, "no image is encoded twice"


def test_two_processes_fit_what_one_does(reproduced, tmp_path):
    table, _, _, ((films, _, sets, seeds, _), arms) = reproduced
    again = reproduce(films, tmp_path, sets, seeds, arms=arms, n_jobs=2, **SHORT)
    pd.testing.assert_frame_equal(again, table, atol=0.26)  # one film of a class of four


def test_its_figures_need_no_pixels(reproduced, films16, tmp_path):
    table, folder, *_ = reproduced
    kinds = [f"reproduction-{name}" for name in ("accuracy", "confusion", "history")]
    write_reproduction(films16, table, folder, tmp_path)
    write_reproduction(films16, table.assign(published=np.nan), folder, tmp_path / "other films")
    assert set(kinds) < {path.stem for path in (tmp_path / "figures").iterdir()}
    write_reproduction(films16, table, "nothing here", tmp_path / "table")
    names = {path.stem for path in (tmp_path / "table" / "figures").iterdir()}
    assert kinds[0] in names and not names & set(kinds[1:]), "the table alone tells no confusion"


def test_seed_noise_tells_near_from_far():
    rows = [
        ("O1", seed, "reference", "macro", "accuracy", 0.77 + 0.02 * (seed % 3), published, "x")
        for published in (0.769,)
        for seed in range(9)
    ]
    rows += [("O1+C3", *row[1:5], row[5] - 0.2, 0.827, "x") for row in rows]
    columns = ["arm", "seed", "evaluation", "class", "metric", "value", "published", "data_hash"]
    found = seed_noise(pd.DataFrame(rows, columns=columns)).set_index("arm")
    assert found.loc["O1", "within"] and not found.loc["O1+C3", "within"]
    assert found.loc["O1", "mean"] == pytest.approx(0.79) and found.loc["O1", "seeds"] == 9

"""What image metrics mean: identity, growth, closed forms, collapse, copying, honest intervals."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest

from kerasgan import quality
from kerasgan.films import Films
from kerasgan.phantom import simulate_films

COLUMNS = "generator,class,reference_set,encoder,metric,value,low,high,floor,authors"


def gaussian(n, d=16, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def films(n, seed=0, size=32, detail=4):
    """Smooth random images, each with structure of its own."""
    coarse = np.random.default_rng(seed).uniform(40, 215, size=(n, detail, detail))
    smooth = [cv2.resize(x, (size, size), interpolation=cv2.INTER_CUBIC) for x in coarse]
    return np.clip(np.rint(smooth), 0, 255).astype("uint8")[..., None]


def noisy(images, sd, seed=0):
    noise = np.random.default_rng(seed).normal(scale=sd, size=images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype("uint8")


pixels = quality.Encoder("pixels", lambda images: images / 255)


def test_importing_needs_no_tensorflow():
    code = "import sys, kerasgan.quality; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- features ---


@pytest.mark.parametrize(
    ("score", "least"), [(lambda a, b: quality.kid(a, b)[0], 0.02), (quality.fid, 2)]
)
def test_distances_are_small_for_one_distribution_and_grow_with_a_shift(score, least):
    real = gaussian(200)
    steps = [score(real, gaussian(200, shift=shift, seed=1)) for shift in (0, 0.3, 0.6, 1.2)]
    assert steps == sorted(steps)
    assert steps[0] < least  # FID keeps its bias on few images
    assert score(gaussian(200, shift=0.6, seed=1), real) == pytest.approx(steps[2], rel=0.1)


def test_kid_is_unbiased_and_names_its_spread():
    values = [
        quality.kid(gaussian(60, seed=2 * i), gaussian(60, seed=2 * i + 1), subsets=20)[0]
        for i in range(60)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    assert min(values) < 0 < max(values)  # unbiased scores of equals fall on both sides
    assert quality.kid(gaussian(60), gaussian(60, seed=1))[1] > 0


def test_kid_by_hand():
    real, fake = np.array([[1.0], [0.0]]), np.array([[1.0], [1.0]])
    # kernel (xy + 1)^3: within real 1, within fake 8, between 8, 8, 1, 1
    assert quality.kid(real, fake, subset_size=2)[0] == pytest.approx(1 + 8 - 2 * 4.5)


def test_kid_on_too_few_images_is_a_clear_error():
    with pytest.raises(ValueError, match="subset_size=50, real=40, fake=60"):
        quality.kid(gaussian(40), gaussian(60))


def test_fid_of_a_set_with_itself_is_zero_and_symmetric():
    real, fake = gaussian(60, d=100), gaussian(80, d=100, seed=1)
    assert quality.fid(real, real) == pytest.approx(0, abs=1e-9)
    assert quality.fid(real, fake) == pytest.approx(quality.fid(fake, real))


def test_fid_closed_form_on_gaussians():
    scale = np.array([1.0, 2.0, 3.0])
    real, fake = gaussian(20000, d=3) * scale, gaussian(20000, d=3, seed=1) * 2 + [1, 0, 2]
    # axis-aligned Gaussians: squared distance of the means plus that of the deviations
    assert quality.fid(real, fake) == pytest.approx(5 + 1 + 0 + 1, rel=0.03)


def test_precision_recall_and_density_coverage_of_like_sets_are_high():
    real, fake = gaussian(300, d=4), gaussian(300, d=4, seed=1)
    assert min(quality.precision_recall(real, fake)) > 0.8
    density, coverage = quality.density_coverage(real, fake)
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(1 - 1 / 2**5, abs=0.03)


def test_collapse_has_high_precision_and_low_recall_and_coverage():
    real = gaussian(200, d=4)
    fake = gaussian(200, d=4, seed=1) * 0.01  # all of them near the centre
    precision, recall = quality.precision_recall(real, fake)
    density, coverage = quality.density_coverage(real, fake)
    assert precision > 0.95 and density > 1
    assert recall < 0.05 and coverage < 0.3


def test_far_away_fakes_score_nothing():
    real, fake = gaussian(60), gaussian(60, shift=20, seed=1)
    assert quality.precision_recall(real, fake) == (0, 0)
    assert quality.density_coverage(real, fake) == (0, 0)
    with pytest.raises(ValueError, match="k=5, n=5"):
        quality.density_coverage(real[:5], fake)


# --- images ---


def test_stretch_uses_each_image_by_itself_and_keeps_flat_ones():
    images = np.stack([films(1)[0] // 2, films(1)[0] // 4 + 100, np.full((32, 32, 1), 7, "uint8")])
    stretched = quality.stretch(images)
    assert stretched[:2].min((1, 2, 3)).tolist() == [0, 0]
    assert stretched[:2].max((1, 2, 3)).tolist() == [255, 255]
    assert not stretched[2].any()
    assert (quality.stretch(stretched) == stretched).all()


def test_hog_reads_direction_and_not_brightness():
    ramp = np.tile(np.arange(0, 128, 4, dtype="uint8"), (32, 1))
    across, down = (quality.hog_features(x[None, ..., None])[0] for x in (ramp, ramp.T.copy()))
    brighter = quality.hog_features(ramp[None, ..., None] + np.uint8(50))[0]
    assert across.shape == (3 * 3 * 36,)
    assert across == pytest.approx(brighter)
    assert across @ down < 0.1 * (across @ across)
    assert quality.hog_features(films(2, size=16)).shape == (2, 36)
    assert np.isfinite(quality.hog_features(np.zeros((1, 16, 16, 1), "uint8"))).all()


def test_sliced_wasserstein_is_zero_symmetric_and_grows_with_noise():
    real = films(20, size=64)
    assert set(quality.sliced_wasserstein(real, real).values()) == {0.0}
    assert list(quality.sliced_wasserstein(real, real)) == [64, 32, 16]
    fake = noisy(films(20, size=64, seed=1), 10)
    assert quality.sliced_wasserstein(real, fake) == quality.sliced_wasserstein(fake, real)
    steps = [quality.sliced_wasserstein(real, noisy(real, sd))[64] for sd in (2, 8, 32)]
    assert steps == sorted(steps)
    assert quality.sliced_wasserstein(real, real // 2)[16] > 100  # brightness counts


def test_detectability_of_like_unlike_copied_and_collapsed_sets():
    real = films(60)
    accuracy, low, high = quality.detectability(real, films(80, seed=1))
    assert low < 0.5 < high and low <= accuracy <= high
    assert quality.detectability(real, noisy(films(60, seed=1), 25))[0] > 0.9
    dark = films(60, seed=1) // 2  # gradients, in blocks of unit length, do not tell
    assert quality.detectability(real, dark)[0] < 0.8
    assert quality.detectability(real, dark, features=lambda x: x.mean((1, 2)))[0] > 0.95
    assert quality.detectability(real, real[::-1])[0] == pytest.approx(0.5, abs=0.01)
    assert quality.detectability(real, np.repeat(films(1, seed=1), 60, axis=0))[0] > 0.95


def test_detectability_keeps_a_patient_in_one_fold():
    base = films(12)
    real = noisy(np.repeat(base, 5, axis=0), 1)  # five films of each of twelve patients
    fake = films(60, seed=1)
    patients = np.repeat([f"p{i}" for i in range(12)], 5)
    by_patient = quality.detectability(real, fake, patients)[0]
    assert by_patient < quality.detectability(real, fake)[0] - 0.1


def test_train_on_synthetic_test_on_real():
    labels = np.repeat([0, 1], 30)
    ramp = np.tile(np.arange(0, 128, 4), (32, 1))
    images = np.stack([ramp] * 30 + [ramp.T] * 30)[..., None].astype("uint8")
    right = quality.train_on_synthetic_test_on_real(noisy(images, 1), labels, images, labels)
    assert right["accuracy"] == right["sensitivity"] == right["f1"] == 1
    assert right["low"] < 1 and right["high"] == pytest.approx(1)
    wrong = quality.train_on_synthetic_test_on_real(noisy(images, 1), 1 - labels, images, labels)
    assert wrong["accuracy"] == 0


def test_diversity_falls_from_collapse_to_variety():
    assert quality.diversity(np.repeat(films(1), 5, axis=0)) == pytest.approx(1)
    alike = quality.diversity(noisy(np.repeat(films(1), 10, axis=0), 10))
    assert 1 > alike > quality.diversity(films(10)) + 0.2
    with pytest.raises(ValueError, match="at least two"):
        quality.diversity(films(1))


def test_a_fingerprint_is_what_all_images_share():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 12, (40, *films(1)[0].shape))
    assert quality.fingerprint(np.repeat(films(1), 5, axis=0)) == pytest.approx(1)
    assert quality.fingerprint(np.uint8(128 + noise)) == pytest.approx(0, abs=0.02)
    half = np.clip(128 + noise + noise[:1], 0, 255).astype(np.uint8)  # as much shared as not
    assert quality.fingerprint(half[1:]) == pytest.approx(0.5, abs=0.05)
    assert quality.fingerprint(half[1:11]) == pytest.approx(0.5, abs=0.05)  # however few
    with pytest.raises(ValueError, match="at least two"):
        quality.fingerprint(films(1))


# --- copying ---


def moved(images, down, right):
    return np.roll(images, (down, right), axis=(1, 2))


COPIES = {
    "exact": lambda x: x,
    "shifted": lambda x: moved(x, 2, -1),
    "flipped": lambda x: x[:, :, ::-1],
    "flipped and shifted": lambda x: moved(x[:, :, ::-1], -2, 2),
    "noisy": lambda x: noisy(x, 5),
    "darker": lambda x: x // 2 + 20,
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_are_flagged_and_traced(copy):
    training = films(40)
    found = quality.memorization(copy(training[10:20]), training)
    assert found["flagged"].all()
    assert found["nearest"].tolist() == list(range(10, 20))


def test_shifts_and_flips_can_be_left_out():
    training = films(40)
    assert not quality.memorization(training[:9, :, ::-1], training, flips=False)["flagged"].all()
    near, far = (quality.memorization(moved(training, 2, 2), training, shifts=s) for s in (2, 0))
    assert (near["distance"] < 0.1 * far["distance"]).all()


@pytest.mark.parametrize("held_out", [False, True])
def test_fresh_films_are_flagged_at_the_stated_rate_only(held_out):
    flagged = [
        quality.memorization(
            films(60, seed=100 + i),
            films(60, seed=i),
            films(60, seed=200 + i) if held_out else None,
            rate=0.05,
        )["flagged"].mean()
        for i in range(8)
    ]
    assert np.mean(flagged) <= 0.05 + 2 * np.std(flagged) / np.sqrt(8)
    assert np.mean(flagged) > 0  # the screen is not blind


def test_one_film_sets_no_distance_of_a_copy():
    own = films(9)
    with pytest.raises(ValueError, match="two training films"):
        quality.memorization(own[:5], own[:1])
    assert len(quality.memorization(own[:5], own[:1], held_out=own[5:])) == 5


def test_films_of_one_patient_do_not_blind_the_screen():
    training = noisy(np.repeat(films(20), 2, axis=0), 3)  # two films of each patient
    patients = np.repeat([f"p{i}" for i in range(20)], 2)
    copies = noisy(training[:5], 6, seed=1)
    assert quality.memorization(copies, training, patients=patients)["flagged"].all()
    assert not quality.memorization(copies, training)["flagged"].all()


def test_a_film_that_is_there_twice_does_not_blind_the_screen():
    once = films(40)
    again = cv2.imencode(".jpg", once[7], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    twice = cv2.imdecode(again, cv2.IMREAD_GRAYSCALE)[None, ..., None]
    for training in (np.concatenate([once, once[:1]]), np.concatenate([once, twice])):
        assert quality.memorization(noisy(once[:9], 4), training)["flagged"].all()
        assert quality.memorization(films(100, seed=5), training)["flagged"].mean() < 0.1
    alike = np.repeat(once[:1], 5, axis=0)
    found = quality.memorization(np.concatenate([once[:1], once[1:2]]), alike)
    assert found["flagged"].tolist() == [True, False]


def test_sizes_that_differ_are_not_compared():
    small, large = films(5, size=32), films(5, size=48)
    for measure in (quality.memorization, quality.nearness, quality.sliced_wasserstein):
        with pytest.raises(ValueError, match="of one size"):
            measure(small, large)


def test_one_patient_among_few_leaves_something_to_learn_from():
    patients = ["most"] * 96 + ["a", "b", "c", "d"]
    for seed in range(3):
        told = quality.detectability(films(100), films(12, seed=1), patients, seed)[0]
        assert 0 <= told <= 1


def test_classes_of_other_levels_and_shares_are_no_sign_of_membership():
    rng = np.random.default_rng(0)
    counts, levels = [(300, 100), (100, 300)], (0, 3)  # seen and not, of either class
    seen, fresh = (
        np.concatenate(
            [rng.normal(level, size=n[side]) for n, level in zip(counts, levels, strict=True)]
        )
        for side in (0, 1)
    )
    kinds = np.concatenate([np.repeat([0, 1], [n[side] for n in counts]) for side in (0, 1)])
    assert quality.attack_auc(seen, fresh)[0] < 0.35
    value, low, high = quality.attack_auc(seen, fresh, classes=kinds)
    assert low < 0.5 < high and abs(value - 0.5) < 0.05


def test_an_attack_by_nearness_finds_a_copying_generator_only():
    sides = films(30), films(30, seed=1)

    def attack(samples):
        return quality.attack_auc(*(quality.nearness(side, samples) for side in sides))

    auc, low, high = attack(noisy(sides[0], 10))
    assert auc > 0.95 and low > 0.9
    auc, low, high = attack(films(60, seed=2))
    assert low < 0.5 < high


def test_an_attack_by_numbers_is_an_auc_with_an_interval():
    rng = np.random.default_rng(0)
    auc, low, high = quality.attack_auc(rng.normal(1, 1, 60), rng.normal(0, 1, 40))
    assert low < auc < high and auc == pytest.approx(0.76, abs=0.1)
    auc, low, high = quality.attack_auc(rng.normal(size=60), rng.normal(size=40))
    assert low < 0.5 < high


# --- comparison ---


def test_compare_sets_ranks_generators_beside_floor_and_authors():
    real = films(40, size=16)
    fakes = {
        "good": films(60, seed=1, size=16),
        "noisy": noisy(films(60, seed=2, size=16), 40),
        "collapsed": noisy(np.repeat(films(1, seed=3, size=16), 60, axis=0), 2),
    }
    authors = noisy(films(50, seed=4, size=16), 20)
    table = quality.compare_sets(
        real,
        fakes,
        quality.Encoder.hog(),
        authors,
        class_name="covid",
        draws=10,
        reference_set="held-out",
    )
    assert ",".join(table) == COLUMNS
    assert set(table["class"]) == {"covid"} and set(table["encoder"]) == {"HOG", "pixels"}
    assert set(table["reference_set"]) == {"held-out (stretched)"}
    assert set(table["generator"]) == {*fakes, "authors"}
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"] + 1e-9).all()
    value = table.pivot(index="metric", columns="generator", values="value")
    floor = table.groupby("metric")["floor"].first()
    for metric in ("kid", "fid", "sliced_wasserstein"):
        assert value.loc[metric, "good"] < value.loc[metric, "noisy"]
    assert value.loc["kid", "good"] == pytest.approx(floor["kid"], abs=0.005)
    assert value.loc["coverage", "collapsed"] < 0.5 * floor["coverage"]
    assert floor["detectability"] == pytest.approx(0.5, abs=0.1)
    assert value.loc["diversity", "collapsed"] > floor["diversity"] + 0.2
    theirs = table.drop_duplicates("metric").set_index("metric")["authors"]
    assert (theirs == value["authors"][theirs.index]).all()


def test_compare_sets_without_authors_does_not_stretch():
    real = films(20, size=16)
    table = quality.compare_sets(real, {"darker": films(20, 1, 16) // 2}, pixels, draws=3)
    assert set(table["reference_set"]) == {"train"} and table["authors"].isna().all()
    fid = table.set_index("metric").loc["fid"]
    assert fid["value"] > 2 * fid["floor"]
    again = quality.compare_sets(real, {"darker": films(20, 1, 16) // 2}, pixels, draws=3)
    assert table.equals(again)


def test_compare_sets_splits_by_patient():
    real = noisy(np.repeat(films(20, size=16), 2, axis=0), 2)
    fakes = {"fresh": films(40, seed=1, size=16)}
    patients = np.repeat([f"p{i}" for i in range(20)], 2)
    floors = [
        quality.compare_sets(real, fakes, pixels, patients=groups, draws=5)
        .set_index("metric")
        .loc["fid", "floor"]
        for groups in (patients, None)
    ]
    assert floors[0] > 1.1 * floors[1]  # halves that share patients look closer than they are


@pytest.mark.parametrize("people", [[5, 4, 3], [16, 1, 1, 1, 1], [12]])
def test_few_and_unequal_patients_stop_no_measurement(people, capsys):
    patients = np.repeat([f"p{i}" for i in range(len(people))], people)
    images = films(len(patients), size=16)
    own = Films.from_arrays(images, [0] * len(images), ("a",), patients)
    fakes = {"fresh": {"a": films(40, seed=1, size=16)}}
    table = quality.compare_films(own, fakes, pixels)
    assert table[["value", "floor"]].notna().all(axis=None)
    assert ("film by film" in capsys.readouterr().out) == (len(people) < 5)


def test_intervals_of_compare_sets_cover():
    encoder = quality.Encoder("mean", lambda x: x.mean(axis=(1, 2)) / 64)
    covered, values = [], []
    for i in range(16):
        rng = np.random.default_rng(i)
        level = rng.normal([[100], [112]], 12, size=(2, 40))
        real, fake = (
            noisy(np.broadcast_to(x[:, None, None, None], (40, 16, 16, 1)), 3, i) for x in level
        )
        table = quality.compare_sets(real, {"shifted": fake}, encoder, draws=10)
        kid = table.set_index("metric").loc["kid"]
        values.append(kid["value"])
        covered.append((kid["low"], kid["high"]))
    low, high = np.transpose(covered)
    assert np.mean((low <= np.mean(values)) & (np.mean(values) <= high)) > 0.8


# --- encoders ---


def test_hog_encoder_gives_a_row_an_image():
    encoder = quality.Encoder.hog()
    images = films(70)  # more than one batch
    assert encoder.name == "HOG"
    assert encoder(images) == pytest.approx(quality.hog_features(images), abs=1e-6)


def test_keras_encoder_reads_a_saved_model_and_resizes(tmp_path):
    keras = pytest.importorskip("keras")
    image = keras.Input((16, 16, 1))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image), name="means")
    model.save(tmp_path / "encoder.keras")
    encoder = quality.Encoder.keras(tmp_path / "encoder.keras")
    images = films(3, size=32)
    expected = images.mean(axis=(1, 2)) / 127.5 - 1
    assert encoder(images) == pytest.approx(expected, abs=0.02)
    assert encoder.name == "means (encoder.keras)"


def test_regions_say_where_something_is(tmp_path):
    import keras

    from kerasgan.films import to_float

    image = keras.Input((64, 64, 1))
    small = keras.layers.AveragePooling2D(16)(image)
    maps = keras.layers.Add()([small, small])
    narrow = keras.layers.AveragePooling2D(32)(image)
    narrow = keras.layers.GlobalAveragePooling2D()(narrow)
    more = keras.layers.GlobalAveragePooling2D()(keras.layers.Concatenate()([maps, small]))
    out = keras.layers.Concatenate()([more, narrow])
    keras.Model(image, out, name="sums").save(tmp_path / "sums.keras")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 1), "uint8")
    wanted = 2 * to_float(images).reshape(3, 4, 16, 4, 16).mean(axis=(2, 4)).reshape(3, 16)
    found = quality.Encoder.regions(tmp_path / "sums.keras")
    np.testing.assert_allclose(found(images), wanted, rtol=1e-4, atol=1e-5)
    assert "4 x 4 regions" in found.name
    halves = quality.Encoder.regions(tmp_path / "sums.keras", grid=2)(images)
    parts = wanted.reshape(3, 2, 2, 2, 2).mean(axis=(2, 4)).reshape(3, 4)
    np.testing.assert_allclose(halves, parts, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no maps of a sixteenth of its side to cut in 5 x 5"):
        quality.Encoder.regions(tmp_path / "sums.keras", grid=5)


def test_best_encoder_falls_back_and_says_so(tmp_path):
    # no cached weights, and a proxy nobody listens on: an unreachable network
    code = (
        "from kerasgan import quality\n"
        "try: quality.Encoder.imagenet('MobileNetV2')\n"
        "except OSError as error: print(error)\n"
        "print(quality.best_encoder('missing.keras').name)"
    )
    closed = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | closed, capture_output=True, text=True
    )
    assert "No ImageNet weights of MobileNetV2" in done.stdout and "Encoder.hog()" in done.stdout
    assert done.stdout.splitlines()[-1] == "HOG"


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="Received: 'VGG99'"):
        quality.Encoder.imagenet("VGG99")
    with pytest.raises(ValueError, match=r"float64 \(2, 8, 8, 1\)"):
        quality.hog_features(np.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match=r"uint8 \(2, 8, 8\)"):
        quality.diversity(np.zeros((2, 8, 8), "uint8"))


def test_a_model_that_is_no_plain_encoder_is_refused(tmp_path):
    import keras

    image, latent = keras.Input((16, 16, 1)), keras.Input((4,))
    code = keras.layers.Flatten()(keras.layers.Lambda(lambda x: x)(image))
    keras.Model(image, code).save(tmp_path / "code.keras")
    with pytest.raises(ValueError, match="Lambda.*could run code"):
        quality.Encoder.keras(tmp_path / "code.keras")
    keras.Model(latent, keras.layers.Dense(3)(latent)).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="is no encoder"):
        quality.Encoder.keras(tmp_path / "other.keras")
    (tmp_path / "cut.keras").write_bytes((tmp_path / "other.keras").read_bytes()[:500])
    with pytest.raises(ValueError, match="is damaged"):
        quality.Encoder.keras(tmp_path / "cut.keras")


def test_the_published_samples_name_is_theirs_alone(films16):
    sets = {name: films16.only(name).images for name in films16.classes}
    with pytest.raises(ValueError, match="call a generator something else"):
        quality.compare_films(films16, {"authors": sets}, quality.Encoder.hog())


def test_test_films_are_matched_by_the_names_of_their_classes():
    simulated = simulate_films(20, size=16, test_per_class=6)
    real = simulated.split("train").only("normal", "pneumonia_vir")
    fakes = {"same": {name: real.only(name).images for name in real.classes}}
    tests = simulated.split("test"), simulated.split("test").only(*real.classes)
    tables = [quality.compare_films(real, fakes, quality.Encoder.hog(), test=x) for x in tests]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize("fake", [films(20, size=16), films(5)])
def test_sets_that_cannot_be_compared_are_named(fake):
    with pytest.raises(ValueError, match="at least 12 images.*Received: ours of all"):
        quality.compare_sets(films(20), {"ours": fake}, pixels)

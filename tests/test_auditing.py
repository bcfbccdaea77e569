from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kerasgan.auditing import audit, border_auc
from kerasgan.films import CLASSES, Films, save_films
from kerasgan.phantom import simulate_films
from kerasgan.sources import load_films


def findings(films, severity=None):
    table = audit(films).findings
    table = table if severity is None else table[table["severity"] == severity]
    return "\n".join(table["finding"])


def noise(n=40, patients=None, split="train"):
    images = np.random.default_rng(0).integers(0, 255, (n, 16, 16), np.uint8)
    return Films.from_arrays(images, np.arange(n) % 2, ("a", "b"), patients, split)


def test_noise_is_innocent():
    assert findings(noise(patients=[f"p{i}" for i in range(40)])) == "nothing found"


def test_patients_of_several_classes_are_named():
    several = noise(patients=["p"] * 2 + [f"p{i}" for i in range(38)])
    assert "1 patients have films of several classes (such as p: a, b)" in findings(several)


def test_unknown_patients_are_named():
    some = noise(patients=["p"] + [""] * 39)
    assert "patients of 39 films are not known" in findings(some, "warning")


def test_a_patient_on_both_sides_comes_first():
    films = noise(40, ["p"] * 2 + [f"q{i}" for i in range(38)], ["train", "test"] + ["train"] * 38)
    table = audit(films).findings
    assert table["severity"].iloc[0] == "serious" and "patient p is on both" in table["finding"][0]


def test_copies_are_found_also_brighter_ones():
    films = noise()
    images = films.images.copy()
    images[1] = np.clip(images[0].astype(int) * 0.8 + 20, 0, 255)
    split = ["test", "train"] + ["train"] * 38
    found = findings(Films.from_arrays(images, films.labels, films.classes, None, split), "serious")
    assert "1 nearly equal pairs on both sides" in found


def test_a_marked_border_is_a_confound_and_disease_is_not():
    films = simulate_films(30, size=32, seed=1)
    assert border_auc(films).max() < 0.8
    images = films.images.copy()
    images[films.labels == 2, :2] = 255
    marked = Films.from_arrays(images, films.labels, CLASSES, films.patients)
    assert border_auc(marked)["pneumonia_bac"] > 0.95
    assert "tells pneumonia_bac from the rest" in findings(marked, "serious")
    few = marked.take(np.concatenate([np.flatnonzero(marked.labels == i)[:6] for i in range(4)]))
    assert "(5 and 15 patients)" in findings(few, "warning")


def test_flat_films_and_small_and_unequal_classes_are_named():
    images = np.random.default_rng(0).integers(0, 255, (40, 16, 16), np.uint8)
    images[5] = 7
    films = Films.from_arrays(images, [0] * 35 + [1] * 5, ("a", "b"))
    found = findings(films)
    sides = ["test"] * 35 + ["train"] * 5
    one_sided = Films.from_arrays(images, [0] * 35 + [1] * 5, ("a", "b"), split=sides)
    assert "a in train: 0" in findings(one_sided)
    assert "constant grey" in found and "b in train: 5" in found and "differ in size" in found


def test_brightness_that_betrays_a_class(films16):
    assert "mean grey levels differ" in findings(films16)


def test_films_of_few_grey_levels_are_named(films16):
    dim = Films.from_arrays(films16.images // 16, films16.labels, films16.classes)
    assert "stay below a quarter of the grey levels" in str(audit(dim))
    assert "quarter" not in str(audit(films16))


def test_images_added_after_the_index_are_named(tmp_path):
    save_films(simulate_films(4, size=16, test_per_class=1), tmp_path / "films")
    new = next((tmp_path / "films").rglob("*.png"))
    (tmp_path / "films" / "train" / "covid" / "new.png").write_bytes(new.read_bytes())
    (tmp_path / "films" / "train" / "covid" / ".DS_Store").touch()
    found = audit(load_films(tmp_path / "films")).findings
    found = found[found["finding"].str.contains("not in the index")]
    assert list(found["severity"]) == ["warning"] and "new.png" in found["finding"].iloc[0]
    assert "DS_Store" not in found["finding"].iloc[0]


def test_nothing_to_audit_is_an_error(films16):
    with pytest.raises(ValueError, match="no films"):
        audit(films16.take([]))


def test_files_that_cannot_be_read_are_named(tmp_path):
    films = save_films(simulate_films(8, size=64, test_per_class=0), tmp_path)
    for path in films.only("covid").index["path"]:
        Path(path).write_bytes(b"no image")
    small = load_films(tmp_path)
    assert small.size == 64, "as all headers that can be read say"
    films = replace(small, size=None)
    found = audit(films)
    assert "8 files cannot be read" in str(found) and "8 files cannot be read" in str(audit(small))
    assert found.border_auc.isna().to_dict() == {k: k == "covid" for k in films.classes}
    with pytest.raises(ValueError, match="none of the films of .* can be read"):
        audit(films.only("covid"))


def test_the_real_films_leak_where_they_are_known_to(real_root):
    found = audit(load_films("covid-xray-64"))
    text = "\n".join(found.findings.query("severity == 'serious'")["finding"])
    assert text.count("nejmoa2001191") == 4
    assert found.border_auc["covid"] > 0.9
    assert str(found).index("[serious]") < str(found).index("[note]")


def test_large_raw_films_are_audited_at_their_own_sizes(real_originals):
    found = findings(load_films("covid-xray-original"))
    assert "films differ in size" in found and "2 files passed over" in found

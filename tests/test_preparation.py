import itertools
import os
import stat
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from kerasgan import preparation
from kerasgan.films import save_films
from kerasgan.preparation import prepare
from kerasgan.sources import load_films


@pytest.fixture
def raw(tmp_path):
    """Two classes of three raw films, 48 x 96, white with a dark left half."""
    pixels = np.full((48, 96), 240, np.uint8)
    pixels[:, :48] = 20
    for kind in ("a", "b"):
        (tmp_path / "raw" / kind).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "raw" / kind / f"{i}.jpg").write_bytes(cv2.imencode(".png", pixels)[1])
    return tmp_path / "raw"


def test_squash_fills_and_pad_keeps_the_aspect(raw, tmp_path):
    films = load_films(raw)
    assert films.size is None
    squashed = prepare(films, tmp_path / "s", 32).images[0, ..., 0]
    assert squashed[:, :15].max() < 40 and squashed[:, 17:].min() > 220
    padded = prepare(films, tmp_path / "p", 32, fit="pad").images[0, ..., 0]
    assert padded[:7].max() == 0 and padded[-7:].max() == 0
    assert padded[9:23, 17:].min() > 220


def test_area_averaging_keeps_the_mean(raw, tmp_path):
    image = prepare(load_films(raw), tmp_path / "s", 16).images[0]
    assert abs(image.mean() - 130) < 1


def test_a_second_call_does_what_is_missing_only(raw, tmp_path):
    films, folder = load_films(raw), tmp_path / "out"
    first = prepare(films, folder, 16)
    times = {path: os.stat(path).st_mtime_ns for path in first.index["path"]}
    gone = first.index["path"][0]
    os.remove(gone)
    again = prepare(films, folder, 16)
    assert again.hash == first.hash
    changed = {path for path in times if os.stat(path).st_mtime_ns != times[path]}
    assert changed == {gone}


def test_unreadable_files_are_named_and_passed_over(raw, tmp_path):
    (raw / "a" / "broken.png").write_bytes(b"\x89PNG\r\n")
    (raw / "a" / "zero.png").touch()
    (raw / "a" / "desktop.ini").write_text("x")
    for name in (".DS_Store", "._one.png"):  # hidden, and no news
        (raw / "a" / name).write_text("x")
    films = prepare(load_films(raw), tmp_path / "out", 16)
    assert len(films) == 6
    assert {name.split("/")[-1] for name, _ in films.skipped} == {
        "broken.png",
        "zero.png",
        "desktop.ini",
    }
    stored = load_films(tmp_path / "out")
    assert len(stored) == 6 and len(stored.skipped) == 3


def test_converted_films_are_kept_and_named(raw, tmp_path, capsys):
    frames = [Image.fromarray(np.full((40, 40), value, np.uint8)) for value in (9, 200)]
    frames[0].save(raw / "a" / "moving.gif", save_all=True, append_images=frames[1:])
    frames[1].convert("CMYK").save(raw / "b" / "print.jpg")
    films = prepare(load_films(raw), tmp_path / "out", 16)
    assert len(films) == 8 and not films.skipped
    out = capsys.readouterr().out
    assert "converted a/moving.gif: first of 2 frames" in out and "b/print.jpg: CMYK" in out


def test_films_of_one_name_in_several_folders_are_all_prepared(raw, tmp_path):
    for sub in ("x", "y"):
        (raw / "a" / sub).mkdir()
        (raw / "a" / sub / "0.jpg").write_bytes((raw / "a" / "0.jpg").read_bytes())
    films = load_films(raw)
    assert {"0.jpg", "x/0.jpg", "y/0.jpg"} <= set(films.index["filename"])
    assert len(load_films(raw)) == len(films) == 8, "the split was kept"
    out = prepare(films, tmp_path / "out", 16)
    assert len(load_films(tmp_path / "out")) == len(out) == len(set(out.index["path"])) == 8


def test_raw_films_and_other_sizes_are_not_overwritten(raw, tmp_path):
    films = load_films(raw)
    for folder in (raw, raw.parent):
        with pytest.raises(ValueError, match="raw films themselves"):
            prepare(films, folder, 16)
    out = prepare(films, tmp_path / "out" / "16", 16)
    for size, fit in ((32, "squash"), (16, "pad")):
        with pytest.raises(ValueError, match="holds films of size=16, fit='squash'"):
            prepare(films, tmp_path / "out" / "16", size, fit)
    path = out.index["path"][0]
    with open(path, "wb"):
        pass
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        prepare(films, tmp_path / "out" / "16", 16)


def test_films_of_another_source_do_not_pass_for_those_prepared(raw, tmp_path):
    films, out = load_films(raw), tmp_path / "out"
    prepare(films, out, 16)
    (raw / "a" / "0.jpg").write_bytes(cv2.imencode(".png", np.zeros((30, 30), np.uint8))[1])
    with pytest.raises(ValueError, match="0.png was prepared from another film") as error:
        prepare(films, out, 16)
    os.remove(str(error.value).split(" ")[0])
    assert prepare(films, out, 16).images.reshape(6, -1).max(1).min() == 0
    arrays = replace(films, size=16, index=films.index.assign(path=""))
    arrays._pixels["images"] = np.zeros((6, 16, 16, 1), np.uint8)
    prepare(arrays, tmp_path / "memory", 16)
    arrays._pixels["images"] = np.ones((6, 16, 16, 1), np.uint8)
    with pytest.raises(ValueError, match="prepared from another film"):
        prepare(arrays, tmp_path / "memory", 16)


def test_raw_films_that_were_written_again_are_looked_at(tmp_path):
    """Not by their sizes alone: a film without compression keeps its size whatever it shows."""
    for kind, grey in itertools.product("ab", (10, 90)):
        path = tmp_path / "raw" / kind / f"{grey}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".bmp", np.full((40, 40), grey, np.uint8))[1])
    films = load_films(tmp_path / "raw")
    prepare(films, tmp_path / "out", 16)
    os.utime(path, ns=(1, 1))
    prepare(films, tmp_path / "out", 16)  # the same film, copied again
    path.write_bytes(path.read_bytes()[:-1600] + bytes(1600))
    for _ in range(2):
        with pytest.raises(ValueError, match="90.png was prepared from another film"):
            prepare(films, tmp_path / "out", 16)


def test_a_new_split_leaves_no_film_of_the_old_one(raw, tmp_path):
    films, out = load_films(raw), tmp_path / "out"
    prepare(films, out, 16)
    other = films.index["split"].map({"train": "test", "test": "train"})
    prepare(replace(films, index=films.index.assign(split=other)), out, 16)
    assert len([*out.rglob("*.png")]) == len(films)


def test_films_are_not_prepared_among_others_nor_where_they_would_be_a_class(raw, tmp_path):
    films = load_films(raw)
    with pytest.raises(ValueError, match="taken for one of their classes"):
        prepare(films, raw / "prepared", 16)
    own = tmp_path / "own"
    own.mkdir()
    (own / "index.csv").write_text("filename,age\n")
    with pytest.raises(ValueError, match="own holds index.csv: choose another folder"):
        prepare(films, own, 16)
    assert (own / "index.csv").read_text() == "filename,age\n" and not (raw / "prepared").exists()
    stored = save_films(prepare(films, tmp_path / "out", 16), tmp_path / "set")
    others = replace(
        films, index=films.index.assign(filename="of-others-" + films.index["filename"])
    )
    for folder, reason in (tmp_path / "set", "a set of other"), (tmp_path / "out", "from others"):
        kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match=f"holds .*{reason}.*choose another folder"):
            prepare(others, folder, 16)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept
    assert stored.hash == load_films(tmp_path / "set").hash


def test_a_stopped_preparation_goes_on_by_its_own_fit_alone(raw, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "_collected", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(load_films(raw), tmp_path / "out", 16)
    with pytest.raises(ValueError, match="fit='squash'.*fit='pad'"):
        prepare(load_films(raw), tmp_path / "out", 16, fit="pad")
    with pytest.raises(ValueError, match="not whole: give the command"):
        load_films(tmp_path / "out")
    monkeypatch.undo()
    prepared = prepare(load_films(raw), tmp_path / "out", 16)
    assert load_films(tmp_path / "out").hash == prepared.hash


def test_a_class_without_a_readable_film_is_an_error(raw, tmp_path):
    films = load_films(raw)
    for path in (raw / "b").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"no film of \['b'\]"):
        prepare(films, tmp_path / "out", 16)


@pytest.mark.parametrize(("size", "fit"), [(60, "squash"), (64, "crop")])
def test_bad_arguments_are_named(raw, tmp_path, size, fit):
    with pytest.raises(ValueError, match=f"{size}|{fit}"):
        prepare(load_films(raw), tmp_path / "out", size, fit)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(raw, tmp_path):
    (tmp_path / "out").mkdir()
    os.chmod(tmp_path / "out", stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OSError):
        prepare(load_films(raw), tmp_path / "out", 16)


def test_a_damaged_note_of_what_is_unfinished_is_named(raw, tmp_path):
    prepare(load_films(raw), tmp_path / "out", 16)
    for content in ('{"files": null}', '{"files": [1]}', "[]"):
        (tmp_path / "out" / "unfinished.json").write_text(content)
        with pytest.raises(ValueError, match="unfinished.json is damaged"):
            prepare(load_films(raw), tmp_path / "out", 16)


def test_two_preparations_of_one_folder_do_not_meet(raw, tmp_path, capsys):
    from kerasgan.__main__ import main
    from kerasgan.runs import locked

    with locked(tmp_path / "out"):
        assert main(["prepare", str(raw), str(tmp_path / "out"), "--size", "16"]) == 1
    assert f"in use by another process (pid {os.getpid()})" in capsys.readouterr().err
    assert main(["prepare", str(raw), str(tmp_path / "out"), "--size", "16"]) == 0


def test_the_real_originals_go_through(real_originals, tmp_path):
    films = prepare(load_films("covid-xray-original"), tmp_path / "out", 64)
    assert films.index["split"].value_counts().to_dict() == {"train": 269, "test": 36}
    assert len(films.skipped) == 2 and all("desktop.ini" in name for name, _ in films.skipped)
    assert films.images.std((1, 2, 3)).min() > 10

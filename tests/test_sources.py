import hashlib
import http.server
import os
import socket
import threading
import time

import cv2
import numpy as np
import pandas as pd
import pytest

from kerasgan import sources
from kerasgan.films import save_films
from kerasgan.phantom import simulate_films
from kerasgan.sources import Unavailable, load_films, manifest


def png(value):
    return cv2.imencode(".png", np.full((16, 16), value, np.uint8))[1].tobytes()


def folder_of(root, layout):
    """Writes a folder from a dict: relative path -> grey value."""
    for name, value in layout.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "PATIENCE", (2, 2))
    monkeypatch.setenv("KERASGAN_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KERASGAN_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("KERASGAN_DATA", raising=False)


@pytest.fixture
def small(monkeypatch, tmp_path, offline):
    """A collection of four small films behind a real loopback server that can misbehave."""
    films = {f"train/a/{i} é.png": png(i) for i in range(3)} | {"test/a/9.png": png(9)}
    rows = [
        (*name.split("/"), f"p{i}", hashlib.sha256(content).hexdigest())
        for i, (name, content) in enumerate(films.items())
    ]
    table = pd.DataFrame(rows, columns=["split", "class", "filename", "patient", "sha256"])
    monkeypatch.setattr(sources, "manifest", lambda name: table)
    server = Server(films)
    monkeypatch.setenv("KERASGAN_URL", server.url)
    yield server
    server.stop()


class Server:
    def __init__(self, films):
        self.films, self.fault, self.asked = films, {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = http.server.urllib.parse.unquote(self.path[1:])
                outer.asked.append(name)
                fault, content = outer.fault.get(name), outer.films.get(name)
                if fault == "stall":
                    time.sleep(30)
                if fault == 404 or content is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if fault == "cut":
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif fault == "other":
                    self.wfile.write(b"x" * len(content))
                else:
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def test_manifests_are_those_of_the_published_collections():
    small, original = manifest("covid-xray-64"), manifest("covid-xray-original")
    assert small["split"].value_counts().to_dict() == {"train": 270, "test": 36}
    assert original["split"].value_counts().to_dict() == {"train": 269, "test": 36}
    for table in (small, original):
        assert (table.groupby(["split", "class"]).size()["test"] == 9).all()
        assert table["sha256"].str.fullmatch("[0-9a-f]{64}").all()
        shared = [set(own["patient"]) - {""} for _, own in table.groupby("split")]
        assert len(shared[0] & shared[1]) == 1


def test_downloads_once_then_from_the_cache(small):
    films = load_films("covid-xray-64")
    assert len(films) == 4 and films.size == 16 and not films.note
    assert films.images[films.index["filename"] == "2 é.png"].max() == 2
    assert films.patients.tolist() == ["p0", "p1", "p2", "p3"]
    asked = len(small.asked)
    load_films("covid-xray-64")
    assert len(small.asked) == asked == 4


@pytest.mark.parametrize("fault", [404, "cut", "other", "stall"])
def test_a_server_that_fails_midway_is_named_and_loses_nothing(small, fault, tmp_path):
    small.fault["train/a/1 é.png"] = fault
    with pytest.raises(Unavailable, match="1 of 4 films failed"):
        load_films("covid-xray-64")
    kept = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert kept == {"0 é.png", "2 é.png", "9.png"}
    small.fault.clear()
    before = len(small.asked)
    assert len(load_films("covid-xray-64")) == 4
    assert small.asked[before:] == ["train/a/1 é.png"]


def test_a_damaged_film_of_the_cache_is_fetched_again(small, tmp_path):
    load_films("covid-xray-64")
    path = next((tmp_path / "cache").rglob("1 é.png"))
    good = path.read_bytes()
    for content in (b"", png(7)):
        path.write_bytes(content)
        before = len(small.asked)
        assert load_films("covid-xray-64").size == 16
        assert small.asked[before:] == ["train/a/1 é.png"] and path.read_bytes() == good


def test_two_folders_of_one_split_are_refused(tmp_path):
    for name in ("train", "training", "test"):
        (tmp_path / name / "a").mkdir(parents=True)
        (tmp_path / name / "a" / "0.png").write_bytes(png(1))
    with pytest.raises(ValueError, match="several folders of one split.*'train', 'training'"):
        load_films(tmp_path)


def test_a_dead_network_is_noticed_once(small):
    small.fault = dict.fromkeys(small.films, "stall")
    started = time.monotonic()
    with pytest.raises(Unavailable, match="DATA=simulated"):
        load_films("covid-xray-64")
    assert time.monotonic() - started < 10
    assert len(small.asked) == 1


def test_auto_falls_back_to_simulated_films_and_says_so(offline, capsys):
    films = load_films("auto", size=16)
    assert films.name == "simulated"
    assert "SIMULATED FILMS" in films.note and len(films.note) < 80, "it stands above every figure"
    printed = capsys.readouterr().out
    assert "127.0.0.1" in printed and "DATA=simulated" in printed
    assert films.counts().query("split == 'train'")["films"].min() >= 60


def test_a_named_source_never_falls_back(offline):
    with pytest.raises(Unavailable):
        load_films("covid-xray-original")


def test_a_cache_that_cannot_be_written_is_named(offline, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERASGAN_HOME", str(tmp_path / "file"))
    with pytest.raises(Unavailable, match="KERASGAN_HOME"):
        load_films("covid-xray-64")


def test_the_data_root_comes_before_the_cache(small, monkeypatch, tmp_path):
    for name, content in small.films.items():
        path = tmp_path / "root" / "covid-xray-64" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setenv("KERASGAN_DATA", str(tmp_path / "root"))
    assert len(load_films("auto")) == 4 and not small.asked
    path.write_bytes(png(7))
    with pytest.raises(ValueError, match="1 films in .* are not those of the collection"):
        load_films("auto")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="lacks 1 of 4"):
        load_films("auto")


def test_real_collections_by_name_and_by_path(real_root):
    films = load_films("covid-xray-64")
    assert (len(films), films.size) == (306, 64)
    assert load_films(real_root / "covid-xray-64").hash == films.hash


def test_class_folders_get_a_split_that_is_kept(tmp_path):
    folder_of(tmp_path, {f"{kind}/{i}.png": i for kind in "ab" for i in range(10)})
    films = load_films(tmp_path)
    assert films.index.groupby(["class", "split"]).size().to_dict() == {
        ("a", "test"): 2,
        ("a", "train"): 8,
        ("b", "test"): 2,
        ("b", "train"): 8,
    }
    again = load_films(tmp_path, seed=5)  # kept, not made anew
    assert again.index["split"].tolist() == films.index["split"].tolist()


def test_hidden_folders_and_a_class_called_macro(tmp_path):
    save_films(simulate_films(4, size=16, test_per_class=0), tmp_path / "films")
    for name in ("index.csv", "about.json"):
        (tmp_path / "films" / name).unlink()
    film = next((tmp_path / "films").rglob("*.png"))
    for hidden in (film.parent, film.parent.parent):
        (hidden / ".ipynb_checkpoints").mkdir()
        (hidden / ".ipynb_checkpoints" / "copy.png").write_bytes(film.read_bytes())
    films = load_films(tmp_path / "films", keep=False)
    assert len(films) == 16 and not films.skipped and len(films.classes) == 4
    assert not (tmp_path / "films" / "index.csv").exists()
    film.parent.rename(film.parent.with_name("macro"))
    with pytest.raises(ValueError, match="no class may be called macro"):
        load_films(tmp_path / "films")
    with pytest.raises(ValueError, match="folders of your own"):
        load_films("simulated", patient_pattern="x")


def test_split_folders_are_taken_as_they_are(tmp_path):
    folder_of(
        tmp_path, {f"{s}/{k}/{i}.png": i for s in ("train", "test") for k in "ab" for i in (1,)}
    )
    films = load_films(tmp_path)
    assert len(films.split("train")) == len(films.split("test")) == 2
    assert not (tmp_path / "index.csv").exists()


@pytest.mark.parametrize("names", [("Training", "Testing"), ("train", "test", "valid")])
def test_split_folders_go_by_their_usual_names(tmp_path, names):
    folder_of(tmp_path, {f"{s}/{k}/{k}0_{i}.png": i for i, s in enumerate(names) for k in "ab"})
    for pattern in (None, r"(.+)_\d+$", None):
        films = load_films(tmp_path, patient_pattern=pattern)
        assert films.classes == ("a", "b")
        assert set(films.index["split"]) == set(("train", "test", "val")[: len(names)])
    assert set(films.patients) == {"a0", "b0"}, "found once by name, the patients are kept"
    (tmp_path / "prepared").mkdir()
    (tmp_path / "index.csv").unlink()
    with pytest.raises(ValueError, match="beside prepared: move"):
        load_films(tmp_path)


def test_an_index_without_splits_finds_them_in_the_folders(tmp_path):
    layout = {f"{s}/{k}/{s}{i}.png": i for s in ("train", "test") for k in "ab" for i in range(4)}
    folder_of(tmp_path, layout)
    rows = [f"{k},{s}{i}.png,{k}{s}{i}" for s in ("train", "test") for k in "ab" for i in range(4)]
    table = "\n".join(["class,filename,patient", *rows]) + "\n"
    (tmp_path / "index.csv").write_text(table)
    films = load_films(tmp_path)
    assert all(map(str.startswith, films.index["filename"], films.index["split"]))
    assert (tmp_path / "index.csv").read_text() == table, "an index of the user's stays as it is"
    (tmp_path / "test" / "a" / "train0.png").write_bytes(png(1))
    with pytest.raises(ValueError, match="train0.png, which is in none or several"):
        load_films(tmp_path)


def test_an_index_of_films_that_are_not_there_stays_as_it_is(tmp_path):
    folder_of(tmp_path, {f"a/{i}.png": i for i in range(5)})
    table = "class,filename\n" + "".join(f"a,{i}.png\n" for i in range(6))
    (tmp_path / "index.csv").write_text(table)
    with pytest.raises(FileNotFoundError, match="lacks 1 of 6"):
        load_films(tmp_path)
    assert (tmp_path / "index.csv").read_text() == table


def test_a_pattern_may_have_alternatives_and_must_be_one(tmp_path):
    folder_of(tmp_path, {f"{k}/{k}{i}{'_1' * (i % 2)}.png": i for k in "ab" for i in range(6)})
    films = load_films(tmp_path, patient_pattern=r"(.+)_\d+$|^(.+)$")
    assert set(films.patients) == {f"{k}{i}" for k in "ab" for i in range(6)}
    with pytest.raises(ValueError, match="no regular expression"):
        load_films(tmp_path, patient_pattern="(.+")


def test_patients_from_names_stay_on_one_side(tmp_path):
    folder_of(tmp_path, {f"{k}/{k}{i // 3}_{i}.png": i for k in "ab" for i in range(15)})
    films = load_films(tmp_path, patient_pattern=r"(.+)_\d+$")
    assert len(set(films.patients)) == 10
    assert not set(films.split("train").patients) & set(films.split("test").patients)
    (tmp_path / "index.csv").unlink()
    with pytest.raises(ValueError, match="does not fit the file name"):
        load_films(tmp_path, patient_pattern=r"patient(\d+)")


def test_a_split_that_knew_no_patients_is_not_taken_for_one_by_patient(tmp_path):
    folder_of(tmp_path, {f"{k}/{k}{i // 3}_{i}.png": i for k in "ab" for i in range(15)})
    load_films(tmp_path)  # splits film by film, as `audit` would
    with pytest.raises(ValueError, match=r"index.csv was split without.*delete it"):
        load_films(tmp_path, patient_pattern=r"(.+)_\d+$")
    (tmp_path / "index.csv").unlink()
    load_films(tmp_path, patient_pattern=r"(.+)_\d+$")
    assert len(set(load_films(tmp_path).patients)) == 10, "kept with the split"


def test_an_index_keeps_its_columns_and_its_patients(tmp_path):
    folder_of(tmp_path, {f"{k}/{i}_{k}.png": i for k in "ab" for i in range(6)})
    rows = [f"{k},{i}_{k}.png,{k}{i // 2},{30 + i},{i}.dcm" for k in "ab" for i in range(6)]
    table = "\n".join(["class,filename,patient,age,path", *rows]) + "\n"
    (tmp_path / "index.csv").write_text(table)
    films = load_films(tmp_path, patient_pattern=r"(\d+)_")
    assert set(films.patients) == {f"{k}{i}" for k in "ab" for i in range(3)}
    kept = pd.read_csv(tmp_path / "index.csv", dtype=str)
    assert list(kept) == ["split", "class", "filename", "patient", "age", "path"]
    assert kept["path"].tolist() == [f"{i}.dcm" for k in "ab" for i in range(6)]
    assert all(path.startswith(str(tmp_path)) for path in films.index["path"])
    assert kept["age"].tolist() == [str(30 + i) for k in "ab" for i in range(6)]


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        ({}, FileNotFoundError, "one folder per class"),
        ({"a/1.png": 1, "b/2.png": 2}, ValueError, "at least two patients"),
        (
            {"a/1.png": 1, "a/2.png": 1, "A/1.png": 2, "A/2.png": 2},
            ValueError,
            "differ only in case",
        ),
        ({"a/1.png": 1, "a/2.png": 1, "b/notes.txt": 2}, ValueError, "holds no films"),
    ],
)
def test_folders_that_are_no_collection(tmp_path, layout, error, message):
    with pytest.raises(error, match=message):
        load_films(folder_of(tmp_path, layout))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="covid-xray-64"):
        load_films(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("class,filename\na,../../secret.png\n", "may not point outside"),
        ("class,filename\n..,secret.png\n", "may not point outside"),
        ("name\nx\n", "needs the columns"),
        ("class,filename\n", "lists no films"),
        ("class,filename\na,gone.png\na,1.png\n", "lacks 1 of 2|at least two"),
        ("", "not a CSV"),
        ("class,filename\na,1.png,train\n", "not a CSV"),
        ("class,filename\na,\n", "lack a class or a filename"),
        ("class,filename,split\na,1.png,train\na,2.png,\n", "some none"),
        ("class,filename,split\na,1.png,train\na,1.png,test\n", "Received twice: a/1.png"),
        ("class,filename,split\na,1.png,train\nA,1.png,test\n", "differ only in case"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, content, message):
    folder_of(tmp_path, {"a/1.png": 1, "a/2.png": 2})
    (tmp_path / "index.csv").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_films(tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"size": -4}', '{"size": "x"}', '{"skipped": [1]}', '{"note": 1}']
)
def test_a_damaged_about_is_named(tmp_path, content):
    folder_of(tmp_path, {"train/a/1.png": 1, "test/a/2.png": 2})
    (tmp_path / "index.csv").write_text("split,class,filename\ntrain,a,1.png\ntest,a,2.png\n")
    (tmp_path / "about.json").write_text(content)
    with pytest.raises(ValueError, match="about.json is damaged.*delete it or prepare"):
        load_films(tmp_path)


def test_a_read_only_folder_works_with_a_split_made_each_time(tmp_path, capsys, monkeypatch):
    folder_of(tmp_path, {f"{kind}/{i}.png": i for kind in "ab" for i in range(10)})

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(sources, "write_text", refuse)
    first, second = load_films(tmp_path), load_films(tmp_path)
    assert first.index["split"].tolist() == second.index["split"].tolist()
    assert "made again, the same" in capsys.readouterr().out


def test_size_is_checked_and_applied(tmp_path):
    folder_of(tmp_path, {f"{kind}/{i}.png": i for kind in "ab" for i in range(4)})
    assert load_films(tmp_path, size=32).images.shape == (8, 32, 32, 1)
    with pytest.raises(ValueError, match="size=60"):
        load_films(tmp_path, size=60)


def test_the_platform_cache_is_the_default(monkeypatch):
    monkeypatch.delenv("KERASGAN_HOME", raising=False)
    assert "kerasgan" in os.fspath(sources._cache())


@pytest.mark.parametrize("share", [0, 0.6, -1])
def test_a_share_of_test_films_that_is_none_is_refused(tmp_path, share):
    save_films(simulate_films(4, size=16, test_per_class=0), tmp_path)
    (tmp_path / "index.csv").unlink()
    with pytest.raises(ValueError, match="test_share must be"):
        load_films(tmp_path, test_share=share)

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from kerasgan import runs
from kerasgan.__main__ import main
from kerasgan.compare import reference_arms
from kerasgan.films import Films, save_films
from kerasgan.runs import PROFILES, Run, locked, read_arrays, write_text


def test_the_paper_profile_is_the_study():
    paper = PROFILES["paper"]
    assert (paper.size, paper.width, paper.gan_epochs, paper.gan_classic) == (64, 64, 200, 1000)
    assert paper.classic == (500, 1000, 2000, 3000) and paper.synthetic == (100, 500, 1000, 2000)
    assert paper.classifier_epochs * paper.classifier_batches == 3000
    assert paper.double_softmax and not paper.live and paper.protocol == "reference"
    assert paper.arms == tuple(reference_arms())


def test_a_run_goes_on_with_its_own_settings_only(tmp_path):
    first = Run("a", "smoke", "simulated", 3, root=tmp_path)
    assert Run("a", None, root=tmp_path).settings == first.settings
    assert Run("a", "smoke", "simulated", 3, root=tmp_path).folder == tmp_path / "a"
    with pytest.raises(ValueError, match="another run name"):
        Run("a", "quick", "simulated", 3, root=tmp_path)


def test_a_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder .*films"):
        Run("a", "smoke", "films", root=tmp_path)
    assert not (tmp_path / "a").exists(), "nothing is begun without films"
    (tmp_path / "films").mkdir()
    assert Run("a", "smoke", "films", root=tmp_path).settings["data"] == str(tmp_path / "films")
    assert Run("b", "smoke", "covid-xray-64", root=tmp_path).settings["data"] == "covid-xray-64"


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b"])
def test_a_name_is_no_path(tmp_path, name):
    with pytest.raises(ValueError, match="name of a folder"):
        Run(name, "smoke", root=tmp_path)


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="'slow'"):
        Run("a", "slow", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="01_data"):
        Run("nowhere", None, root=tmp_path)
    for text in ("{", "[]", '{"profile": "odd", "data": "x", "seed": 1}', '{"profile": "quick"}'):
        write_text(tmp_path / "b" / "settings.json", text)
        with pytest.raises(ValueError, match="is damaged"):
            Run("b", "smoke", root=tmp_path)


def test_the_split_keeps_patients_apart_except_in_the_studys_protocol(films16, tmp_path):
    run = Run("a", "smoke", "simulated", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="run notebook 01_data"):
        run.split()
    save_films(films16, run.path("films"))
    train, test = run.split()
    assert len(test) == 16 and len(train) == 28
    assert not set(train.patients) & set(test.patients)
    paper = Run("b", "paper", "simulated", root=tmp_path)
    save_films(films16, paper.path("films"))
    assert len(paper.split()[0]) == 32


def test_one_sided_films_are_an_error(tmp_path):
    run = Run("a", "smoke", "simulated", root=tmp_path)
    save_films(
        Films.from_arrays(np.zeros((2, 16, 16), np.uint8), [0, 0], ("a",)), run.path("films")
    )
    with pytest.raises(ValueError, match="2 training and 0 test"):
        run.split()


def test_stages_are_marked(tmp_path):
    run = Run("a", "smoke", root=tmp_path)
    assert run.finished("01_data") is None
    run.finish("01_data", 2.34)
    assert run.finished("01_data") == 2.3


def test_tables_are_written_whole(tmp_path):
    run = Run("a", "smoke", root=tmp_path)
    table = pd.DataFrame({"a": [1, 2]})
    assert run.save_table(table, "t") is table
    assert pd.read_csv(run.folder / "t.csv").equals(table)


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "a" / "x.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a" / "x.txt", "new \udcff")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a" / "x.txt", "new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.txt"]
    assert (tmp_path / "a" / "x.txt").read_text() == "old"


def test_the_root_of_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("KERASGAN_RUNS", str(tmp_path))
    assert Run("a", "smoke").folder == tmp_path / "a"
    monkeypatch.delenv("KERASGAN_RUNS")
    from kerasgan.runs import default_root

    assert default_root().name == "runs"


HOLD = """
import sys, time
from kerasgan.runs import locked
with locked(sys.argv[1] + "/a"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, capsys, monkeypatch):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    run = Run("a", "smoke", "simulated", root=tmp_path)
    monkeypatch.setenv("KERASGAN_RUNS", str(tmp_path))
    for profile in ("smoke", "quick"):  # of the same run, or of one that would be another
        assert main(["run", "a", "--profile", profile, "--data", "simulated"]) == 1
        told = capsys.readouterr().err
        assert f"pid {first.pid}" in told and "another run name" in told and "delete" not in told
    assert Run("a", None).settings == run.settings
    for words in (["train", "simulated"], ["compare", "simulated", "--folder"]):
        assert main([*words, str(run.folder)]) == 1
        assert f"in use by another process (pid {first.pid})" in capsys.readouterr().err
    first.kill()
    first.communicate()
    with locked(run.folder):
        assert (run.folder / ".holder").read_text()
    assert not (run.folder / ".holder").exists()


def test_a_lock_of_which_nothing_came_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no"), locked(tmp_path / "a" / "b"):
        raise ValueError("no")
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a"):
        write_text(tmp_path / "a" / "x.txt", "x")
    assert (tmp_path / "a" / "x.txt").is_file()


def test_odd_seeds_and_paths_are_refused(tmp_path):
    for seed in (-5, 2**31):
        with pytest.raises(ValueError, match="seed must be of 0 to"):
            Run("a", "smoke", seed=seed, root=tmp_path)
    with pytest.raises(ValueError, match="no usable path .it is empty"):
        Run("a", "smoke", data="", root=tmp_path)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", *(f'{{"seconds": {s}}}' for s in ('"long"', "[]", "NaN", -1))]
)
def test_a_damaged_mark_of_a_stage_is_named_and_the_stage_runs_again(tmp_path, content, capsys):
    run = Run("a", "smoke", "simulated", root=tmp_path)
    write_text(run.path("stages", "01_data.json"), content)
    assert run.finished("01_data") is None
    assert "01_data.json" in capsys.readouterr().out


def test_arrays_are_read_up_to_a_limit_and_without_pickles(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.npz")["x"], [0, 1, 2])
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(10_000_000))
    monkeypatch.setattr(runs, "MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="the limit is 1,000,000"):
        read_arrays(tmp_path / "bomb.npz")
    np.savez(tmp_path / "large.npz", x=np.zeros(10_000_000))  # on disk, too
    assert read_arrays(tmp_path / "large.npz")["x"].shape == (10_000_000,)
    np.savez(tmp_path / "code.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_arrays(tmp_path / "code.npz")


def test_texts_and_bytes_have_one_short_hash():
    assert runs.short_hash("a") == runs.short_hash(b"a") == "ca978112ca1bbdca"


def test_a_hash_of_digits_stays_a_text(tmp_path):
    for told in ("0123456789012345", "12345678e0123456"):
        (tmp_path / "t.csv").write_text(f"data_hash,value\n{told},1.5\n")
        table = runs.read_table(tmp_path / "t.csv", "")
        assert table["data_hash"].item() == told and table["value"].item() == 1.5

import ast
import os
import re
import subprocess
import sys
from concurrent.futures import BrokenExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kerasgan import networks, store
from kerasgan.__main__ import _is_the_judge, _named, main
from kerasgan.films import CLASSES, save_films
from kerasgan.phantom import simulate_films
from kerasgan.runs import locked
from kerasgan.sources import load_films


def test_help_needs_no_tensorflow():
    code = (
        "import sys, kerasgan.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('tensorflow', 'keras', 'cv2', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "synthesise" in done.stdout and done.stdout.strip().endswith("[]")


def test_the_package_is_imported_lazily():
    code = (
        "import sys, kerasgan\n"
        "assert 'tensorflow' not in sys.modules\n"
        "kerasgan.quality, kerasgan.scores\n"
        "assert 'tensorflow' not in sys.modules\n"
        "missing = [n for n in kerasgan.__all__ if not getattr(kerasgan, n, None)]\n"
        "assert not missing and set(dir(kerasgan)) >= set(kerasgan.__all__), missing\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_another_backend_is_refused():
    code = "import os; os.environ['KERAS_BACKEND'] = 'jax'; import kerasgan"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "unset KERAS_BACKEND" in done.stderr and done.returncode == 1


def test_another_backend_is_refused_in_one_line_of_the_command():
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-m", "kerasgan", "audit", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.startswith("kerasgan: ")
    assert "unset KERAS_BACKEND" in done.stderr and done.stderr.count("\n") == 1


def test_a_late_import_says_that_trainings_will_be_slow():
    code = "import tensorflow, warnings; warnings.simplefilter('error'); import kerasgan"
    environment = {k: v for k, v in os.environ.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    slow = "avx2" in flags and not {"avx512_vnni", "avx_vnni", "amx_tile"} & set(flags)
    for setting in ({}, {"TF_ENABLE_ONEDNN_OPTS": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment | setting
        )
        assert ("import kerasgan first" in done.stderr) == (slow and not setting), done.stderr


def test_a_backend_set_in_the_configuration_of_keras_does_not_step_in(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    code = "import os, kerasgan; assert os.environ['KERAS_BACKEND'] == 'tensorflow'"
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    environment["KERAS_HOME"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


FORBIDDEN = {"eval", "exec", "__import__", "system", "popen", "extractall", "unpack_archive"}
FORBIDDEN |= {"read_pickle", "to_pickle", "enable_unsafe_deserialization", "Lambda"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "subprocess", "tarfile"}


@pytest.mark.parametrize(
    "path", sorted(Path(store.__file__).parent.glob("*.py")), ids=lambda path: path.name
)
def test_nothing_in_the_package_runs_foreign_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not FORBIDDEN_MODULES & {name.split(".")[0] for name in names}
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        owner = ast.unparse(getattr(node.func, "value", ast.Constant(None)))
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        assert name not in FORBIDDEN, name
        assert "shell" not in options
        # The clock may jump: nothing reads it but for the date on a card.
        assert name not in ("now", "utcnow", "getmtime") and ast.unparse(node.func) != "time.time"
        if name == "load":
            assert owner == "np" and options["allow_pickle"] == "False"
        if name == "load_model" and owner.endswith("models"):
            assert options["safe_mode"] == "True" and options["compile"] == "False"


def test_public_names_have_documentation():
    import kerasgan

    for name in kerasgan.__all__:
        found = getattr(kerasgan, name)
        if callable(found):
            assert found.__doc__ and len(found.__doc__) > 60, name


def test_lost_workers_and_want_of_memory_are_told_in_one_line(tmp_path, capsys, monkeypatch):
    import tensorflow as tf

    for error, told in (
        (BrokenExecutor(), "a worker process was lost"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM\nmore"), "TensorFlow stopped.*: OOM. "),
    ):

        def stop(*_, error=error, **__):
            raise error

        monkeypatch.setattr("kerasgan.sources.load_films", stop)
        assert main(["audit", str(tmp_path)]) == 1
        line = capsys.readouterr().err
        assert re.search(told, line) and line.count("\n") == 1
    monkeypatch.setattr("kerasgan.sources.load_films", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["audit", str(tmp_path)])


@pytest.mark.parametrize(
    ("encoder", "judged_by", "same"),
    [
        ("ImageNet MobileNetV2", "features of mobilenetv2_1.00_224", True),
        ("ImageNet_EfficientNetLite1 (x.keras)", "features of ImageNet_EfficientNetLite1", True),
        ("ImageNet_EfficientNetLite0 (x.keras)", "features of ImageNet_EfficientNetLite1", False),
        ("HOG", "pixels", False),
        ("ImageNet", "", False),
    ],
)
def test_an_encoder_that_was_the_judge_is_known(encoder, judged_by, same):
    assert _is_the_judge(encoder, judged_by) is same


def test_prepare_audit_and_models(real_or_simulated, tmp_path, capsys):
    assert main(["prepare", str(real_or_simulated), str(tmp_path / "out"), "--size", "16"]) == 0
    assert "8 films in" in capsys.readouterr().out
    assert main(["audit", str(tmp_path / "out")]) == 0
    assert "fewer than 10 films" in capsys.readouterr().out
    films = load_films(tmp_path / "out")
    generator = networks.build_generator(16, width=2)
    store.save_generator(generator, tmp_path / "models" / "dcgan-covid", films.only("covid"))
    assert main(["models", str(tmp_path / "models")]) == 0
    assert "dcgan-covid" in capsys.readouterr().out
    model = str(tmp_path / "models" / "dcgan-covid")
    assert main(["synthesise", model, str(tmp_path / "drawn"), "--count", "5"]) == 0
    assert len(load_films(tmp_path / "drawn")) == 5
    words = ["synthesise", model, str(tmp_path / "fresh"), "--count", "4"]
    assert main([*words, "--screen", str(tmp_path / "out")]) == 1
    assert "3 patients" in capsys.readouterr().err
    save_films(simulate_films(12, size=16, test_per_class=0), tmp_path / "more")
    assert main([*words, "--screen", str(tmp_path / "more")]) == 0
    assert "multiples of the screen's limit" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "fresh" / "distances.csv")
    assert list(table) == ["filename", "nearest", "distance", "limit", "class"] and len(table) == 4
    assert len(load_films(tmp_path / "fresh")) == 4
    words = ["synthesise", model, str(tmp_path / "fresh"), "--count", "2"]  # others, unscreened
    assert main(words) == 0
    left = {path.name for path in (tmp_path / "fresh").rglob("*.*")}
    images = {"synthetic-00000.png", "synthetic-00001.png"}
    assert left - {".lock"} == images | {"index.csv", "about.json"}
    assert main(["quality", str(tmp_path / "more"), str(tmp_path / "models" / "dcgan")]) == 1
    assert "lacks the classes ['normal'" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "distances.csv").write_text("mine")
    assert main(["synthesise", model, str(tmp_path / "mine"), "--count", "2"]) == 1
    assert "choose another folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "distances.csv").read_text() == "mine"


@pytest.fixture
def real_or_simulated(tmp_path):
    save_films(simulate_films(2, size=32, test_per_class=1), tmp_path / "raw")
    return tmp_path / "raw"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["audit", "nowhere"], "no folder"),
        (["prepare", "simulated", "out", "--size", "60"], "size=60"),
        (["models", "nowhere"], "no folder of models"),
        (["synthesise", "nowhere", "out"], "no card"),
        (["run", "x", "--profile", "slow"], "profile must be one of"),
        (["run", "a/b"], "name of a folder"),
        (["run", "a", "--profile", "smoke", "--data", "nowhere"], "no folder"),
        (["audit", "~no-such-user/films"], "no usable path"),
        (["compare", "simulated", "--classifiers", "cnn, vit"], "['vit']"),
        (["quality", "simulated", "best", "--out", "."], "--out is a CSV file"),
        (["quality", "simulated", "best", "--out", "q.png"], "--out is a CSV file"),
        (["compare", "simulated", "--gan-encoder=~/none.keras"], str(Path.home() / "none.keras")),
        (["quality", "simulated", "best", "--cards"], "leave --cards"),
        (["quality", "simulated", "best", "./best"], "names of their own"),
    ],
)
def test_errors_are_one_line_that_names_the_remedy(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERASGAN_RUNS", str(tmp_path / "runs"))
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("kerasgan: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_evaluation_does_not_overwrite_a_run(tmp_path, capsys):
    (tmp_path / "stages").mkdir()
    assert main(["compare", "simulated", "--out", str(tmp_path)]) == 1
    assert "holds a run" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "reproduction"])
def test_two_evaluations_do_not_write_the_same_tables(command, tmp_path, capsys):
    words = [command, "simulated", "--size", "16", "--folder", str(tmp_path / "own")]
    if command == "reproduction":
        np.savez(tmp_path / "s.npz", **{kind: np.zeros((2, 16, 16), np.uint8) for kind in CLASSES})
        words += ["--synthetic", str(tmp_path / "s.npz")]
    with locked(tmp_path / "tables"):
        assert main([*words, "--out", str(tmp_path / "tables")]) == 1
    assert "tables is in use by another process" in capsys.readouterr().err
    assert not (tmp_path / "own").exists()


def test_generated_sets_go_by_their_whole_names():
    paths = ["runs/kept-0.8", "runs/kept-0.9", "a/b.npz", "c/d.v2.npz"]
    assert [*_named(paths)] == ["kept-0.8", "kept-0.9", "b", "d.v2"]
    assert [*_named(["x/best-0.9", "y/best-0.9"])] == ["x/best-0.9", "y/best-0.9"]


@pytest.mark.parametrize(
    "words",
    [["train", "x", "y", "--steps", "0"], ["run", "--seed", "-1"], ["compare", "--folds", "1"]],
)
def test_numbers_out_of_range_are_refused_before_anything_begins(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert f"{words[-1]}" in capsys.readouterr().err.splitlines()[-1]


def test_train_saves_a_generator_per_class_without_the_test_patients(
    tmp_path, capsys, small_encoder
):
    films = simulate_films(16, size=16, films_per_patient=2, test_per_class=2)
    films = films.only("covid", "normal")
    save_films(films, tmp_path / "films")
    folder = tmp_path / "out"
    small_encoder().save(tmp_path / "judge.keras")
    command = ["train", str(tmp_path / "films"), str(folder), "--size", "16", "--width", "2"]
    command += ["--encoder", str(tmp_path / "judge.keras")]
    assert main([*command, "--steps", "2"]) == 0
    test = films.split("test")
    for name in films.classes:
        assert store.load_model(folder / f"best-{name}").output_shape == (None, 16, 16, 1)
        card = store.read_card(folder / f"best-{name}")
        assert card["classes"] == [name] and not store.shared_patients(card, test)
        assert card["command"].endswith("--encoder judge.keras") and "judged_by" in card
        assert " FOLDER --size 16 --width 2 --steps 2 " in card["command"]
    assert main([*command, "--steps", "2"]) == 0, "finished: read back"
    plain = [*command[:2], str(tmp_path / "plain"), *command[3:], "--steps", "2", "--no-framing"]
    assert main([*plain, "--moments", "0", "--hog", "0"]) == 0
    card = store.read_card(tmp_path / "plain" / "best-covid")
    assert (
        card["moments"] == card["hog"] == 0
        and card["parameters"] < store.read_card(folder / "best-covid")["parameters"]
    )
    assert "best-covid" in capsys.readouterr().out
    assert store.load_model(folder / "classifier-classic", "classifier").output_shape == (None, 2)
    encoder = folder / "encoder" / "encoder.keras"
    rng = np.random.default_rng(0)
    noise = {name: rng.integers(0, 256, (16, 16, 16)).astype("uint8") for name in films.classes}
    np.savez(tmp_path / "noise.npz", **noise)
    words = ["quality", str(tmp_path / "films"), str(folder / "best"), str(tmp_path / "noise.npz")]
    words += ["--authors", str(tmp_path / "noise.npz"), "--encoder", str(encoder), "hog"]
    words += ["--cards", "--discriminator", str(folder / "discriminator.keras")]
    assert main([*words, "--out", str(tmp_path / "quality.csv")]) == 0
    table = pd.read_csv(tmp_path / "quality.csv")
    assert set(table["generator"]) == {"best", "noise", "authors"}
    assert {"kid", "coverage", "detectability", "memorized", "tstr", "membership"} <= set(
        table["metric"]
    )
    attacks = table[table["metric"] == "membership"]
    assert set(attacks.query("encoder == 'discriminator'")["generator"]) == {"best"}
    assert attacks["value"].between(0, 1).all() and len(attacks) == 4
    kid = table.query("metric == 'kid'")
    assert (kid.groupby(["generator", "class"])["encoder"].nunique() == 2).all()
    assert kid["authors"].notna().all()
    for metric, by in (("sliced_wasserstein", "pixels"), ("detectability", "HOG")):
        assert set(table[table["metric"] == metric]["encoder"]) == {by}
    copies = pd.read_csv(tmp_path / "quality.copies.csv")
    shares = table.query("metric == 'memorized' and generator == 'best'")["value"]
    assert (copies["generator"] == "best").sum() == round(1000 * shares.sum())
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    own = films.split("train")
    save_films(own.take(np.arange(1, len(own))), tmp_path / "few")
    assert main(["quality", str(tmp_path / "few"), words[2], "--encoder", "hog", "--cards"]) == 1
    assert "trained on other films" in capsys.readouterr().err
    words = [*words[:3], "--classes", "normal", "--encoder", "hog", "--out"]
    assert main([*words, str(tmp_path / "normal.csv")]) == 0
    assert set(pd.read_csv(tmp_path / "normal.csv")["class"]) == {"normal", "macro"}
    scores = store.read_card(folder / "best-normal")["scores"]
    assert scores["coverage"]["encoder"].endswith("(encoder.keras)")
    assert {"detectability", "memorized", "tstr", "membership"} <= set(scores)
    assert scores["coverage"] != scores["coverage, HOG"] and "memorized, pixels" not in scores
    save_films(own.only("normal"), tmp_path / "normal")
    words = ["keep-off", str(folder / "best"), words[1], str(tmp_path / "kept")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.count("near copies among 1,000 samples: 0 before, 0 now") == 2
    was, now = (store.read_card(path / "best-covid") for path in (folder, tmp_path / "kept"))
    changed = {"command", "scores", "date", "versions", "truncation"}
    assert {k: was[k] for k in was.keys() - changed} == {k: now[k] for k in now.keys() - changed}
    assert now["command"].startswith(f"{was['command']}; ") and "scores" not in now
    assert now["truncation"] == 1
    for model, data, reason in (
        (str(folder / "best-normal"), str(tmp_path / "normal"), "classes are"),
        (str(folder / "best-covid"), str(tmp_path / "few"), "was trained on other films"),
        (str(folder / "none"), words[2], "no saved generator"),
    ):
        assert main(["keep-off", model, data, words[3]]) == 1
        assert reason in capsys.readouterr().err
    both = [str(folder / "best-normal"), str(tmp_path / "kept" / "best-normal")]
    table = tmp_path / "both.csv"
    words = ["quality", str(tmp_path / "normal"), *both, "--encoder", "hog", "--out", str(table)]
    assert main(words) == 0, "of one class, whose folders end alike"
    names = {f"{folder.name}/best-normal", "kept/best-normal"}
    assert set(pd.read_csv(table)["generator"]) == names
    assert main(["keep-off", both[0], words[1], f"{both[0]}/kept"]) == 1
    assert main(["train", words[1], f"{words[1]}/models"]) == 1
    assert "taken for one of their classes" in capsys.readouterr().err


def test_train_makes_the_studys_gan_of_the_classes_asked_for(tmp_path, capsys):
    save_films(simulate_films(6, size=16, test_per_class=1), tmp_path / "films")
    command = ["train", str(tmp_path / "films"), str(tmp_path / "out"), "--size", "16"]
    command += ["--width", "2", "--epochs", "1", "--reference"]
    assert main([*command, "--hog", "0"]) == 1
    assert "--hog: not with --reference" in capsys.readouterr().err
    assert main([*command, "normal", "covid"]) == 0
    made = {path.name for path in (tmp_path / "out").glob("dcgan-*")}
    assert made == {"dcgan-covid", "dcgan-normal"}
    card = store.read_card(tmp_path / "out" / "dcgan-normal")
    assert card["kind"] == "dcgan" and card["epochs"] == 1 and card["weights"] == "bfloat16"
    assert main([*command, "nothing"]) == 1 and "classes are" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_writes_tables_and_figures(tmp_path, capsys):
    save_films(
        simulate_films(6, size=16, films_per_patient=2, test_per_class=2), tmp_path / "films"
    )
    out = tmp_path / "results"
    words = [
        "compare",
        str(tmp_path / "films"),
        "--folder",
        str(tmp_path / "cells"),
        "--size",
        "16",
    ]
    words += ["--folds", "2", "--repeats", "1", "--steps", "2", "--gan-steps", "2"]
    words += ["--gan-width", "2", "--classifiers", "cnn", "--out", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "SIMULATED" in printed and "no covid films, cnn, seed 0" in printed
    table = pd.read_csv(out / "comparison.csv")
    assert ",".join(table) == ("arm,kind,classifier,repeat,fold,seed,class,metric,value,data_hash")
    assert set(table["kind"]) == {"real", "classic", "duplicated", "synthetic", "baseline"}
    statistics = pd.read_csv(out / "statistics.csv")
    assert ",".join(statistics) == (
        "arm,kind,control,classifier,metric,difference,low,high,p,p_adjusted,n,primary"
    )
    assert statistics["primary"].sum() == 1
    names = {path.stem for path in (out / "figures").iterdir()}
    assert names == {f"comparison-cnn-{n}" for n in ("differences", "confusion", "reliability")}


@pytest.mark.slow
def test_reproduction_writes_its_table(tmp_path, capsys):
    films = simulate_films(4, size=16, films_per_patient=2, test_per_class=2)
    save_films(films, tmp_path / "films")
    rng = np.random.default_rng(0)
    samples = {name: rng.integers(0, 256, (5, 16, 16)).astype("uint8") for name in films.classes}
    np.savez(tmp_path / "samples.npz", **samples)
    words = ["reproduction", str(tmp_path / "films"), "--synthetic", str(tmp_path / "samples.npz")]
    words += ["--folder", str(tmp_path / "arms"), "--out", str(tmp_path / "out"), "--size", "16"]
    words += ["--seeds", "1", "--epochs", "1", "--passes", "2", "--single-softmax"]
    assert main([*words, "--transfer", "hog"]) == 0
    table = pd.read_csv(tmp_path / "out" / "reproduction.csv")
    assert set(table["evaluation"]) == {"reference", "deterministic", "transfer"}
    assert table["arm"].nunique() == 9 and "20 samples" in capsys.readouterr().out
    assert table.query("arm == 'O1' and metric == 'accuracy'")["published"].isna().all()
    assert (tmp_path / "out" / "figures" / "reproduction-accuracy.png").is_file()
    words[words.index("--seeds") + 1] = "2"
    assert main([*words, "--first-seed", "1"]) == 0
    further = pd.read_csv(tmp_path / "out" / "reproduction.csv")
    own = further[further["seed"] == 1]
    assert set(own["arm"]) == {"O1", "O1+C3", "O1+C3+G3"} and len(further) == len(table) + len(own)
    assert main([*words, "--first-seed", "2"]) == 1


def test_a_home_left_by_the_shell_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert main(["models", "~/models"]) == 0
    assert main(["models", "~/nothing"]) == 1
    assert str(tmp_path / "nothing") in capsys.readouterr().err


def test_compare_writes_its_tables_and_goes_on_with_later_repeats(tmp_path, capsys):
    save_films(simulate_films(12, 16, test_per_class=0), tmp_path / "films")
    command = ["compare", str(tmp_path / "films"), "--folder", str(tmp_path / "folds")]
    command += ["--out", str(tmp_path / "out"), "--size", "16", "--folds", "2", "--no-probes"]
    command += ["--classifiers", "transfer", "--encoder", "hog", "--gan-steps", "2"]
    command += ["--gan-width", "2", "--repeats"]
    assert main([*command, "1"]) == 0
    first = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert set(first["repeat"]) == {0} and (tmp_path / "out" / "statistics.csv").is_file()
    later = [*command, "2", "--first-repeat", "1"]
    later[later.index("--folder") + 1] = str(tmp_path / "later")
    assert main(later) == 0
    both = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert set(both["repeat"]) == {0, 1}
    old = both[both["repeat"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, first)

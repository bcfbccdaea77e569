import importlib.util
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from kerasgan.films import save_films
from kerasgan.phantom import simulate_films

PATH = Path(__file__).parent.parent / "benchmarks" / "when_it_helps.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("when_it_helps", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(gain, spread, sets=6):
    return pd.DataFrame(
        [
            (20, 0.5, f"{arm} 0.5", n, "macro", "sensitivity", 0.6 + 0.05 * n + more, "x")
            for n in range(sets)
            for arm, more in (("duplicated", 0.0), ("synthetic", gain + spread * (-1) ** n))
        ],
        columns=["films", "ratio", "arm", "training_set", "class", "metric", "value", "data_hash"],
    )


def test_gains_are_paired_by_training_set(script):
    point = script.gains(rows(0.03, 0.01)).iloc[0]
    assert point["difference"] == pytest.approx(0.03)
    assert 0.01 < point["low"] < 0.03 < point["high"] < 0.05 and point["n"] == 6
    assert script.gains(rows(0.03, 0.0)).iloc[0]["low"] == pytest.approx(0.03)


@pytest.mark.slow
def test_the_chart_is_measured_and_resumes(script, tmp_path, capsys):
    words = ["--out", str(tmp_path / "out"), "--folder", str(tmp_path / "cells"), "--films", "6"]
    words += ["--ratios", "0.5", "--size", "16", "--test", "8", "--classifier", "cnn"]
    words += ["--steps", "2", "--gan-steps", "2", "--gan-width", "2", "--least", "2", "--most", "2"]
    script.main(words)
    table = pd.read_csv(tmp_path / "out" / "when_it_helps_cnn.csv")
    assert set(table["classifier"]) == {"cnn"}
    assert set(table["training_set"]) == {0, 1} and set(table["ratio"]) == {0.5}
    assert set(table["arm"]) == {"duplicated 0.5", "synthetic 0.5"}
    assert (tmp_path / "out" / "figures" / "when_it_helps_cnn.png").is_file()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/films6/repeat*/*")}
    script.main(words)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    words[words.index("6")] = "5"  # further films a class join those that are there
    script.main(words)
    finer = pd.read_csv(tmp_path / "out" / "when_it_helps_cnn.csv")
    pd.testing.assert_frame_equal(finer[finer["films"] == 6].reset_index(drop=True), table)
    assert set(finer["films"]) == {5, 6}
    with pytest.raises(ValueError, match="steps=2"):
        script.main([*words, "--steps", "3"])


def test_an_ablation_keeps_what_it_measured_also_before_a_weight_was_known(tmp_path, small_encoder):
    save_films(simulate_films(30, size=16), tmp_path / "films")
    small_encoder().save(tmp_path / "encoder.keras")
    words = [sys.executable, PATH.with_name("ablation.py"), tmp_path / "films"]
    words += ["hinge", "a GAN a class", "--encoder", tmp_path / "encoder.keras"]
    words += ["--size", "16", "--steps", "8", "--looks", "2"]
    words = [*map(str, words), "--out", str(tmp_path / "table.csv")]
    subprocess.run(words, check=True, capture_output=True)
    table = pd.read_csv(tmp_path / "table.csv")
    assert (
        table["variant"].tolist() == 2 * ["hinge"] + 2 * ["a GAN a class"]
        and table["at"].tolist() == [4, 8, 4, 8]
        and not table.loc[0, "kid":"fingerprint"].equals(table.loc[1, "kid":"fingerprint"])
        and table["kid_held_out"].notna().all()
    )
    table.drop(columns="hog").to_csv(tmp_path / "table.csv", index=False)
    subprocess.run(words, check=True, capture_output=True)
    assert list(pd.read_csv(tmp_path / "table.csv")) == [n for n in table if n != "hog"]

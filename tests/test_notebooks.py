import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from kerasgan.films import CLASSES

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(arguments, runs, data="", **more):
    environment = {**os.environ, "KERASGAN_RUNS": str(runs), "KERASGAN_DATA": data, **more}
    return subprocess.run(
        [sys.executable, "-m", "kerasgan", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The four notebooks in the smoke profile, offline: simulated films step in."""
    runs = tmp_path_factory.mktemp("runs")
    offline = {"KERASGAN_URL": "http://127.0.0.1:9", "KERASGAN_HOME": str(runs / "cache")}
    done = run(["run", "smoke", "--profile", "smoke"], runs, **offline)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return runs / "smoke", done.stdout


def test_chain_makes_what_it_promises(chain):
    folder, output = chain
    assert (folder / "report.html").stat().st_size > 50_000
    table = pd.read_csv(folder / "comparison.csv")
    assert {"arm", "evaluation", "class", "metric", "value", "low", "high"} <= set(table)
    assert set(table["evaluation"]) == {"deterministic", "reference"}
    assert len(list((folder / "models").glob("*/generator.keras"))) == 4
    assert len(list((folder / "synthetic").rglob("*.png"))) == 4 * 24
    assert "Report:" in output and "02_gans" in output


def test_simulated_films_are_announced_everywhere(chain):
    folder, output = chain
    assert "SIMULATED FILMS" in output
    assert "SIMULATED FILMS" in (folder / "report.html").read_text()
    for path in (folder / "notebooks").glob("*.ipynb"):
        assert "SIMULATED FILMS" in path.read_text(), path.name


def test_notebooks_show_figures(chain):
    folder, _ = chain
    for path in (folder / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, 4).cells
        outputs = [out for cell in cells for out in cell.get("outputs", [])]
        assert sum("image/png" in out.get("data", {}) for out in outputs) >= 2, path.name


def test_finished_stages_are_not_run_again(chain):
    folder, _ = chain
    done = run(["run", "smoke", "--profile", "smoke"], folder.parent)
    assert done.returncode == 0
    assert done.stdout.count("finished earlier") == 4


def test_other_settings_are_refused(chain):
    folder, _ = chain
    done = run(["run", "smoke", "--profile", "quick"], folder.parent)
    assert done.returncode == 1 and "another run name" in done.stderr
    assert "Traceback" not in done.stderr


def test_given_samples_take_the_place_of_drawn_ones(chain, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASGAN_RUNS", str(tmp_path))
    shutil.copytree(chain[0], tmp_path / "smoke")
    black = np.zeros((3, 16, 16), "uint8")  # fewer than an arm asks for: they are repeated
    np.savez(tmp_path / "given.npz", **dict.fromkeys(CLASSES, black))
    path = NOTEBOOKS[3]
    facts = {"PROFILE": "smoke", "RUN": "smoke", "SAMPLES": str(tmp_path / "given.npz")}
    options = {"cwd": path.parent, "progress_bar": False, "kernel_name": "python3"}
    papermill.execute_notebook(path, tmp_path / path.name, facts, **options)
    drawn, given = (
        pd.read_csv(x / "smoke" / "comparison.csv") for x in (chain[0].parent, tmp_path)
    )
    same = drawn["kind"] != "synthetic"
    pd.testing.assert_frame_equal(drawn[same], given[same])
    assert not drawn[~same].equals(given[~same])


@pytest.mark.parametrize("path", NOTEBOOKS[4:], ids=lambda path: path.stem)
def test_other_notebooks_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASGAN_RUNS", str(tmp_path))
    monkeypatch.setenv("KERASGAN_HOME", str(tmp_path / "cache"))  # no network, no films of old
    monkeypatch.setenv("KERASGAN_URL", "http://127.0.0.1:9")
    papermill.execute_notebook(
        path,
        tmp_path / path.name,
        {"PROFILE": "smoke"},
        cwd=path.parent,
        progress_bar=False,
        kernel_name="python3",
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    notebook = nbformat.read(path, 4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    assert ["parameters"] in tags
    assert notebook.cells[0].cell_type == "markdown"
    text = json.dumps(notebook)
    assert "not for diagnosis" in text
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    addresses = [line for s in sources for line in s.splitlines() if line.startswith("REPOSITORY")]
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert len(addresses) == 1 and addresses[0].split('"')[1] in pyproject
    assert not any(cell.get("outputs") for cell in notebook.cells), "they would show films"


@pytest.mark.slow
def test_the_profile_best_trains_one_network_for_all_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASGAN_RUNS", str(tmp_path))
    small = nbformat.v4.new_code_cell(
        "import dataclasses\n"
        "from kerasgan.runs import PROFILES\n"
        "small = {'size': 32, 'best_steps': 4}\n"
        "PROFILES['best'] = dataclasses.replace(PROFILES['smoke'], **small)"
    )
    for path in NOTEBOOKS[:3]:
        notebook = nbformat.read(path, 4)
        notebook.cells.insert(0, small)
        nbformat.write(notebook, tmp_path / path.name)
        papermill.execute_notebook(
            tmp_path / path.name,
            tmp_path / path.name,
            {"PROFILE": "best", "DATA": "simulated"},
            cwd=path.parent,
            progress_bar=False,
            kernel_name="python3",
        )
    cards = sorted((tmp_path / "tutorial" / "models").glob("*/card.json"))
    assert len(cards) == 4 and all(json.loads(c.read_text())["kind"] == "best" for c in cards)
    assert (tmp_path / "tutorial" / "gans" / "all" / "checkpoint").is_dir()

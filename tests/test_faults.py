"""Kills, damaged files, full and read-only disks, on the real chain. All slow.

`KERASGAN_FAULT_ROUNDS` is the number of kills of the longest test, 20 by default.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from kerasgan.films import save_films
from kerasgan.phantom import simulate_films
from kerasgan.runs import read_arrays
from kerasgan.store import load_safely

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
ROUNDS = int(os.environ.get("KERASGAN_FAULT_ROUNDS", "20"))
CHAIN = ["run", "r", "--profile", "smoke", "--data", "simulated"]


def start(words, runs):
    return subprocess.Popen(
        [sys.executable, "-m", "kerasgan", *words],
        cwd=ROOT,
        env={**os.environ, "KERASGAN_RUNS": str(runs), "KERASGAN_DATA": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs deaf to Ctrl-C, and so what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(words, runs):
    process = start(words, runs)
    out, error = process.communicate(timeout=1800)
    return process.returncode, out, error


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """An undisturbed run: its folder, and how long it took."""
    runs, started = tmp_path_factory.mktemp("calm"), time.monotonic()
    status, out, error = finish(CHAIN, runs)
    assert status == 0, out[-2000:] + error[-2000:]
    return runs / "r", time.monotonic() - started


def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path for path in found}


def assert_equal(folder, calm):
    """Asserts that a run's files are there, whole, and hold what those of a calm run hold."""
    ours, theirs = files(folder), files(calm)
    assert set(ours) == set(theirs)
    assert not [name for name in ours if "partial" in name]
    for name, path in ours.items():
        if path.suffix in (".json", ".ipynb"):
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(theirs[name]))
        elif path.suffix == ".npz":
            expected = read_arrays(theirs[name])
            for key, value in read_arrays(path).items():
                np.testing.assert_array_equal(value, expected[key], err_msg=f"{name} {key}")
        elif path.suffix == ".keras":
            pairs = zip(
                load_safely(path).get_weights(),
                load_safely(theirs[name]).get_weights(),
                strict=True,
            )
            assert all(np.array_equal(one, other) for one, other in pairs), name
        elif path.suffix == ".png" and path.parts[-2] != "figures":
            assert path.read_bytes() == theirs[name].read_bytes(), name


def test_a_chain_killed_at_random_moments_ends_as_an_undisturbed_one(calm, tmp_path):
    folder, seconds = calm
    rng, killed = np.random.default_rng(), 0
    while killed < ROUNDS:
        process, moment = start(CHAIN, tmp_path), rng.uniform(0, seconds)
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            continue
        assert process.returncode == 0
        assert_equal(tmp_path / "r", folder)  # it came through: begin anew
        shutil.rmtree(tmp_path / "r")
    status, out, error = finish(CHAIN, tmp_path)
    assert status == 0, out[-2000:] + error[-2000:]
    assert_equal(tmp_path / "r", folder)


def test_a_second_run_is_refused_and_ctrl_c_leaves_nothing_behind(tmp_path):
    first = start(CHAIN, tmp_path)
    holder = tmp_path / "r" / ".holder"
    deadline = time.monotonic() + 120
    while not holder.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    status, _, error = finish(CHAIN, tmp_path)
    assert status == 1 and f"pid {first.pid}" in error and error.count("\n") == 1
    while not (kernels := psutil.Process(first.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(5)
    first.send_signal(signal.SIGINT)
    _, error = first.communicate(timeout=120)
    assert first.returncode == 130 and "goes on from what is finished" in error
    assert "Traceback" not in error
    _, alive = psutil.wait_procs(kernels, timeout=30)
    assert not alive and not holder.exists()


def test_damaged_files_of_a_run_are_named(calm, tmp_path):
    shutil.copytree(calm[0], tmp_path / "r")
    (tmp_path / "r" / "stages" / "02_gans.json").write_text("{")
    checkpoint = next((tmp_path / "r" / "gans").glob("*/checkpoint/checkpoint.npz"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    status, out, error = finish(CHAIN, tmp_path)
    assert status == 0 and "Damaged mark" in out and "set aside" in error
    checkpoint.with_suffix(".damaged").unlink()
    assert_equal(tmp_path / "r", calm[0])

    (tmp_path / "r" / "stages" / "03_synthesis.json").unlink()
    model = next((tmp_path / "r" / "models").glob("*/generator.keras"))
    model.write_bytes(model.read_bytes()[:2000])
    status, _, error = finish(CHAIN, tmp_path)
    assert status == 1 and str(model) in error and "damaged" in error


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, and a function that mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder])
        if done.returncode:
            pytest.skip("a file system cannot be mounted here")

    mount("size=200k")
    yield folder, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_cleanly_and_the_run_goes_on_when_there_is_room(calm, disk):
    folder, remount = disk
    status, out, error = finish(CHAIN, folder)
    assert status == 1 and "No space left" in error, out[-1000:] + error
    assert not [path for path in folder.rglob("*") if "partial" in path.name]
    remount("size=500m")
    status, out, error = finish(CHAIN, folder)
    assert status == 0, out[-2000:] + error[-2000:]
    assert_equal(folder / "r", calm[0])


def test_full_and_read_only_folders_are_named_in_one_line(disk, tmp_path):
    folder, remount = disk
    save_films(simulate_films(40, size=128, test_per_class=2), tmp_path / "films")
    command = ["prepare", str(tmp_path / "films"), str(folder / "out"), "--size", "64"]
    for options, message in (("size=200k", "make room"), ("size=200k,ro", "can be written")):
        remount(options)
        status, _, error = finish(command, tmp_path)
        assert status == 1 and message in error.splitlines()[-1] and "Traceback" not in error
        assert not [path for path in folder.rglob("*") if "partial" in path.name]
    remount("size=50m,rw")
    assert finish(command, tmp_path)[0] == 0
    assert len(list(folder.rglob("*.png"))) == 160

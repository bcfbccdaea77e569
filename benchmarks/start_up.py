"""Start-up and the whole chain, seconds, against what the project allows itself.

    python benchmarks/start_up.py            # imports and help
    python benchmarks/start_up.py --chain    # the notebooks on simulated films, as `make reproduce`

`other` is the limit: 0.3 s for `import kerasgan` beyond `import keras`, 1 s for the command's help,
600 s for the chain (profile quick, or smoke with --quick), one run.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import arguments, medians, record

ROOT = Path(__file__).resolve().parents[1]


def seconds(*words, **variables):
    """Runs this Python with words in the project's folder; returns the seconds it took."""
    started = time.perf_counter()
    environment = {**os.environ, **variables}
    subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def seconds_of_import():
    """Seconds that `import kerasgan` takes in a new process that has imported keras."""
    code = (
        "import time, keras; began = time.perf_counter(); import kerasgan; "
        "print(time.perf_counter() - began)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    return float(done.stdout.split()[-1])


def main():
    chain = "--chain" in sys.argv
    words, sys.argv[1:] = sys.argv[1:], [word for word in sys.argv[1:] if word != "--chain"]
    options = arguments(__doc__)
    sys.argv[1:] = words  # the command that the rows name
    if chain:
        profile = "smoke" if options.quick else "quick"
        with tempfile.TemporaryDirectory() as folder:
            words = ["-m", "kerasgan", "run", "chain", "--data", "simulated", "--profile", profile]
            took = seconds(*words, KERASGAN_RUNS=folder)
        record(options, f"the chain, profile {profile}", took, 600, "s", 1, lower_is_better=True)
        return
    cases = {"import": seconds_of_import, "help": lambda: seconds("-m", "kerasgan", "--help")}
    measured = medians(cases, options.rounds)
    case = "import kerasgan after keras"
    record(options, case, measured["import"], 0.3, "s", 1, lower_is_better=True)
    record(options, "python -m kerasgan --help", measured["help"], 1, "s", 1, lower_is_better=True)


if __name__ == "__main__":
    main()

"""What the benchmarks share: their options, interleaved medians, rows of results/benchmarks.csv."""

import argparse
import csv
import os
import platform
import statistics
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"
COLUMNS = ["benchmark", "case", "ours", "other", "unit", "ratio", "goal", "command", "machine"]


def arguments(description, switches=()):
    """Reads the options every benchmark has, and sets TensorFlow's threads: before its import.

    Args:
        description: The benchmark's docstring.
        switches: Dict from further options, off by default, to what they do.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works")
    parser.add_argument("--rounds", type=int, help="rounds of which the median is taken")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of benchmarks.csv")
    for switch, text in dict(switches).items():
        parser.add_argument(switch, action="store_true", help=text)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 7)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(options.threads)
    return options


def medians(cases, rounds):
    """Measures cases in turn, `rounds` times, so that a noisy minute falls on all of them alike.

    Args:
        cases: Dict from name to a function that measures once and returns a number.
        rounds: Number of rounds.

    Returns:
        Dict from name to the median.
    """
    values = {name: [] for name in cases}
    for _ in range(rounds):
        for name, measure in cases.items():
            values[name].append(measure())
    return {name: statistics.median(measured) for name, measured in values.items()}


def record(options, case, ours, other, unit, goal="", lower_is_better=False):
    """Prints a row and appends it to benchmarks.csv; the ratio is always higher-is-better."""
    ratio = other / ours if lower_is_better else ours / other
    values = [
        Path(sys.argv[0]).stem,
        case,
        f"{ours:.4g}",
        f"{other:.4g}",
        unit,
        f"{ratio:.3g}",
        goal,
    ]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    row = dict(
        zip(COLUMNS, [*values, command, f"{_processor()}, {options.threads} threads"], strict=True)
    )
    print("  ".join(str(row[name]) for name in COLUMNS[:-2]), flush=True)
    path = options.results / "benchmarks.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        flags = next((line.split() for line in lines if line.startswith("flags")), [])
        widest = {"AVX-512": "avx512f", "AVX2": "avx2"}  # ratios differ with it
        return ", ".join([name, *[text for text, flag in widest.items() if flag in flags][:1]])
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

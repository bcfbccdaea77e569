"""Start-up, in processor time: a busy machine must not fail it."""

import resource
import subprocess
import sys


def test_importing_the_package_adds_little_to_keras():
    code = (
        "import keras, time; started = time.process_time(); import kerasgan; "
        "print(time.process_time() - started)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 0.3


def test_help_answers_within_a_second():
    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    started = spent()
    command = [sys.executable, "-m", "kerasgan", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert spent() - started < 1 and "synthesise" in done.stdout

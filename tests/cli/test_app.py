"""`packedbag.cli.app`."""

import os
import subprocess
import sys

import pytest

import packedbag
from tests.cli.command import run

pytest.importorskip("typer")
pytest.importorskip("rich")


def test_version_is_printed_alone():
    assert run("--version") == (0, f"packedbag {packedbag.__version__}\n", "")


def test_help_names_every_command_and_the_first_thing_to_try():
    code, out, _ = run("--help")
    assert code == 0
    assert all(f" {command} " in out for command in ("train", "compare", "plan", "doctor"))
    assert "packedbag train movielens-100k --compare" in out


def test_help_of_train_shows_examples_and_exit_codes():
    code, out, _ = run("train", "--help")
    assert code == 0
    assert "packedbag train criteo --data train.txt --hash-rows 1000000 --split time" in out
    assert "130" in out


@pytest.mark.parametrize("library", ["typer", "rich", "sklearn", "tensorboard"])
def test_a_missing_extra_is_named_without_a_traceback(library):
    code = (
        f"import sys; sys.modules['{library}'] = None;"
        "sys.argv = ['packedbag', 'train', 'libfm', '--data', 'x', '--tensorboard', 'x'];"
        "from packedbag.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    extras = {"typer": "cli", "rich": "cli", "sklearn": "train", "tensorboard": "tensorboard"}
    assert done.returncode == 2
    assert f"pip install 'packedbag[{extras[library]}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_option_is_misuse():
    code, _, err = run("train", "movielens-100k", "--colour", "blue")
    assert code == 2
    assert "--colour" in err


@pytest.mark.parametrize(("given", "found"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given, found):
    code = (
        "import atexit, os, sys; sys.argv = ['packedbag', '--version'];"
        "atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules));"
        "from packedbag.cli.app import main; main()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    # It is too late once torch is loaded, so that must not have happened yet.
    assert done.stdout.splitlines()[-1] == f"{found} False"

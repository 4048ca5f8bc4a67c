"""Without TorchRec the rest works, and what needs it says how to install it."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = "import sys; sys.modules['torchrec'] = None\n"


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment or None)


def test_importing_the_adapter_says_what_to_install() -> None:
    done = run("import packedbag, packedbag.optim, packedbag.cli.app\nimport packedbag.adapters.torchrec")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingTorchRecError: packed tables on several machines need TorchRec" in last
    assert "pip install --no-deps -r requirements/torchrec.txt" in last


def test_the_command_says_it_without_a_traceback() -> None:
    told = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    arguments = "['packedbag', 'train', 'csv', '--data', 'x', '--label', 'y', '--sharding', 'row']"
    done = run(f"sys.argv = {arguments}\nfrom packedbag.cli.app import main\nmain()", **told)
    assert done.returncode == 2
    assert "pip install --no-deps -r requirements/torchrec.txt" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr

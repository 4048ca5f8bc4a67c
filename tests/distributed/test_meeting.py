"""How the processes of a run find each other, after a restart too."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import torch.distributed as dist

from tests.distributed.ranks import ROOT, environment_of

JOIN = """
import sys, time
time.sleep(float(sys.argv[1]))
import torch.distributed
from packedbag.recsys import ranks
ranks.join(20)
torch.distributed.barrier()
import os
os._exit(0)  # as a process that is killed: nothing is taken back
"""


def test_a_rank_that_restarts_faster_does_not_take_the_old_address_of_another() -> None:
    # torchrun's own store, which it keeps through a restart.
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for attempt in range(2):
        ranks = []
        for rank, seconds in enumerate((0, 2 * attempt)):
            environment = {**environment_of(2, 2), **told, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment["TORCHELASTIC_RESTART_COUNT"] = str(attempt)
            command = [sys.executable, "-c", JOIN, str(seconds)]
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        for rank in ranks:
            _, said = rank.communicate(timeout=60)
            assert rank.returncode == 0, said

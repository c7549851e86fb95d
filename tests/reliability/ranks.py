"""Two processes that train together: forked, and told of each other as torchrun tells them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import torch.distributed as dist

from tests.reliability.killing import Child, Life, Say, life

WORLD = 2

RankWork = Callable[[int, Say], None]


def together(work: RankWork) -> list[Life]:
    """What becomes of each process; a silent one is ended when the others are through.

    Args:
        work: gets the rank and a function that says a word to this process.
    """
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False,
                            timeout=timedelta(seconds=60))  # fmt: skip
    children = [Child(partial(_work, work, rank, meeting.port)) for rank in range(WORLD)]
    return [child.wait() for child in children]


def finished(work: Callable[[], None], world: int) -> None:
    """Does the same work in one process or in two, and fails where one does not finish it.

    torchrun would start each on a Python of its own, which loads torch for seconds.
    """
    if world == 1:
        lives = [life(lambda say: work())]
    else:
        assert world == WORLD
        lives = together(lambda rank, say: work())
    assert [(one.fault, one.signal) for one in lives] == [(None, None)] * world


def _work(work: RankWork, rank: int, port: int, say: Say) -> None:
    os.environ.update({
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "proof",
        "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    })  # fmt: skip
    work(rank, say)


def with_restarts(work: Callable[[], None], restarts: int) -> None:
    """The same under torchrun's own agent, which begins all anew where one ends badly.

    To be called in a child: it leaves threads and handlers behind.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=WORLD, run_id="proof",
                          rdzv_backend="c10d", rdzv_endpoint="localhost:0",
                          max_restarts=restarts, monitor_interval=0.1,
                          start_method="fork")  # fmt: skip
    elastic_launch(config, work)()

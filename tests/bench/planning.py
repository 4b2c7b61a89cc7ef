"""How long it takes to decide who starts next on which GPUs, without a daemon: the pure planner.

Many users' jobs, of one to four GPUs, of a kind, or a share of one; whenever a job ends the planner
says what starts. The baseline gives the same jobs plain GPUs in the order in which they came.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict, deque

from aitbcd.allotment import Held, Stock, Wish
from aitbcd.backlog import WINDOW
from aitbcd.devices import LINKS, Gpu, GpuState
from aitbcd.model import Lane
from aitbcd.planner import Claim, Line, Use, Waiting, plan

_GPUS, _USERS, _GIB = 16, 40, 1 << 30


def gpus() -> list[Gpu]:
    """Return two kinds of GPUs on two boards."""
    uuids = [f"GPU-{index}" for index in range(_GPUS)]
    return [
        Gpu(
            index, uuid, "NVIDIA H100" if index % 2 else "NVIDIA A100", None, 80 * _GIB, 0,
            GpuState.FREE,
            links={
                other: LINKS[0] if at // 8 == index // 8 else LINKS[-1]
                for at, other in enumerate(uuids)
                if at != index
            },
        )
        for index, uuid in enumerate(uuids)
    ]  # fmt: skip


def jobs(count: int) -> list[tuple[int, Waiting]]:
    """Return jobs, each with its user."""
    chance = random.Random(7)
    kinds = [Wish(1, "NVIDIA H100"), Wish(1, share=20 * _GIB)]
    wishes = [Wish(1), Wish(1), Wish(2), Wish(4), *kinds]
    return [
        (chance.randrange(_USERS), Waiting(number, Claim(1), chance.choice(wishes)))
        for number in range(1, count + 1)
    ]


def decide(count: int) -> float:
    """Return the microseconds that the start of one job of so many takes."""
    queues: dict[int, deque[Waiting]] = defaultdict(deque)
    known = {}
    for uid, waiting in jobs(count):
        queues[uid].append(waiting)
        known[waiting.number] = uid, waiting
    free_gpus = gpus()
    held: dict[int, tuple[str, ...]] = {}
    spent, started = 0.0, 0
    while queues or held:
        lines = [
            Line(Lane(0, uid, True), [queue[at] for at in range(min(WINDOW, len(queue)))])
            for uid, queue in queues.items()
        ]
        uses: dict[int, Use] = defaultdict(Use)
        having = [Held(uuids, known[number][1].wish.share) for number, uuids in held.items()]
        for number in held:
            uid, waiting = known[number]
            uses[uid] = uses[uid].plus(1, waiting.wish.count)
        stock = Stock.of(free_gpus, having)
        began = time.perf_counter()
        chosen = plan(lines, Claim(1000), stock, uses)
        spent += time.perf_counter() - began
        for placed in chosen:
            uid, waiting = known[placed.number]
            queues[uid].remove(waiting)
            if not queues[uid]:
                del queues[uid]
            held[placed.number] = placed.gpu_uuids
        started += len(chosen)
        # The one that has run longest ends.
        del held[next(iter(held))]
    assert started == count
    return spent / started * 1e6


def plainly(count: int) -> float:
    """Return the microseconds that it takes to give the first free GPUs to who came first."""
    waiting = deque(one.wish.count for _, one in jobs(count))
    free, held = list(range(_GPUS)), deque[list[int]]()
    began = time.perf_counter()
    while waiting:
        while waiting and waiting[0] <= len(free):
            held.append([free.pop() for _ in range(waiting.popleft())])
        free += held.popleft()
    return (time.perf_counter() - began) / count * 1e6

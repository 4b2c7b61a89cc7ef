"""What ``aitbcctl gpus --watch`` draws, on screens of all sizes."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aitbcctl import glyphs, panel
from aitbcctl.history import History
from aitbcctl.panel import Line, Seen
from aitbcctl.tables import columns
from tests.unit.test_gpus_table import GIB, gpu

NOW = datetime(2026, 2, 13, 10, 5, tzinfo=UTC)
NOTEBOOK = {
    "pid": 4711,
    "user": "bob",
    "command": "python -m ipykernel",
    "memory": 5 * GIB,
    "job_id": None,
    "foreign": True,
    "since": "2026-02-13T08:12:44Z",
}


def job(number: int, *uuids: str, **more: object) -> dict[str, Any]:
    return {
        "job_id": f"job_{number:08}",
        "user": "ada",
        "name": f"train-{number}",
        "status": "running",
        "progress": 40,
        "gpu_uuids": list(uuids),
        "started_at": "2026-02-13T10:00:00Z",
        "estimated_completion": "2026-02-13T10:25:00Z",
        "until": "2026-02-13T10:25:00Z",
        "waiting": None,
        "is_mine": False,
    } | more


def busy(index: int, *jobs: dict[str, Any], **more: object) -> dict[str, Any]:
    return gpu(index, jobs=[one["job_id"] for one in jobs], **more)


def idle(index: int, **more: object) -> dict[str, Any]:
    return gpu(index, state="free", jobs=[], utilization=0, memory_used=0, **more)


def seen(*gpus: dict[str, Any], jobs: Any = (), pending: int = 0, **more: Any) -> Seen:
    inventory = {"problem": None, "driver_version": "570.86.15", "gpus": list(gpus)} | more
    return Seen(inventory, jobs, pending)


def texts(lines: list[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def shown(what: Seen, width: int = 80, height: int = 24, history: History | None = None) -> str:
    return "\n".join(texts(panel.draw(what, history or History(), width, height, NOW)))


def test_a_job_stands_under_its_gpu_with_owner_progress_and_time_left() -> None:
    one = job(1, "GPU-0aaa", is_mine=True)
    lines = shown(seen(busy(0, one), idle(1), jobs=[one])).splitlines()
    assert lines[0].split("  ")[:3] == ["2 × H100 80GB HBM3", "1 free", "1 busy"]
    at = next(at for at, line in enumerate(lines) if line.startswith("  0  busy"))
    assert "100% ━━━━" in lines[at]
    assert "79.0/80 GiB" in lines[at]
    words = "job_00000001 ada train-1 40% ━━━━────── 5 min, 20 min left"
    assert lines[at + 1].split() == words.split()
    assert lines[-1].split() == "no job waits for GPUs q quits".split()


def test_a_long_name_is_shown_rather_than_a_bar() -> None:
    one = job(1, "GPU-0aaa", name="llama-70b-finetune-on-everything")
    line = next(
        line for line in shown(seen(busy(0, one), jobs=[one])).splitlines() if "ada" in line
    )
    assert "finetune-on-every" in line
    assert "━" not in line


def test_a_time_limit_is_no_estimate() -> None:
    one = job(1, "GPU-0aaa", progress=0, estimated_completion=None)
    assert "5 min, 20 min at most" in shown(seen(busy(0, one), jobs=[one]))


def test_gpus_of_one_job_are_one_block_and_others_say_where_it_is() -> None:
    wide = job(1, "GPU-0aaa", "GPU-1aaa", "GPU-3aaa")
    other = job(2, "GPU-2aaa")
    gpus = [busy(0, wide), busy(1, wide), busy(2, other), busy(3, wide)]
    lines = shown(seen(*gpus, jobs=[wide, other]), 120).splitlines()
    marks = [line[:3] for line in lines if "GiB" in line]
    assert marks == ["┌ 0", "└ 1", "  2", "  3"]
    for what in ("and on 1 more GPU", "as on GPU 0"):
        assert next(line for line in lines if what in line).split()[0] == wide["job_id"]


def test_foreign_processes_and_reasons_stand_under_their_gpu() -> None:
    foreign = gpu(0, state="foreign", jobs=[], reason="bob's process 4711", processes=[NOTEBOOK])
    drained = gpu(1, state="drained", jobs=[], reason="new fan (drained by root)")
    said = shown(seen(foreign, drained))
    assert "bob  pid 4711  5.0 GiB  since" in said
    assert "python -m ipykernel" in said
    assert "bob's process" not in said, "the process itself says it"
    assert "     new fan (drained by root)" in said


def test_a_display_server_is_not_shown() -> None:
    assert "4711" not in shown(seen(idle(0, processes=[NOTEBOOK | {"foreign": False}])))


def test_what_waits_is_counted_and_the_first_says_for_what() -> None:
    waits = job(7, status="pending", waiting="waits for 2 of 8 GPUs", progress=0)
    said = " ".join(shown(seen(idle(0), jobs=[waits], pending=12)).split())
    assert "12 jobs wait for GPUs; first job_00000007 of ada: waits for 2 of 8 GPUs" in said


def test_where_lines_are_short_users_move_into_the_gpus_line() -> None:
    jobs = [job(n, f"GPU-{n}aaa") for n in range(16)]
    lines = shown(seen(*(busy(n, jobs[n]) for n in range(16)), jobs=jobs)).splitlines()
    assert len([line for line in lines if "ada train-" in line and "GiB" in line]) == 16


def test_shares_of_a_gpu_are_counted_where_they_do_not_fit() -> None:
    jobs = [job(n, "GPU-0aaa") for n in range(9)]
    said = shown(seen(busy(0, *jobs), jobs=jobs), height=8)
    assert "… 5 more" in said
    said = shown(seen(busy(0, *jobs), busy(1, jobs[0]), jobs=jobs), 120, height=4)
    assert "ada train-0 40% +8" in said


def test_on_a_small_screen_a_shared_gpu_shows_a_job_whole_and_how_many_more() -> None:
    name, user = "llama-70b-with-a-long-name", "maximiliane-von-und-zu-hohenfels"
    jobs = [job(n, f"GPU-{n % 8}aaa", name=name, user=user) for n in range(40)]
    what = seen(*(busy(n, *jobs[n::8]) for n in range(8)), jobs=jobs)
    lines = [line for line in shown(what).splitlines() if "job_000000" in line]
    assert len(lines) == 8
    assert all("40%" in line and line.endswith("20 min left  +4") for line in lines)
    # Where there are no lines for them, neither progress nor count is what a long name costs.
    lines = [line for line in shown(what, height=14).splitlines() if "GiB" in line]
    assert len(lines) == 8
    assert all(line.endswith("  maximilia… 40% +4") for line in lines)


def test_mig_devices_are_told_apart_where_names_are_short() -> None:
    name = "NVIDIA H100 80GB HBM3 MIG "
    mig = {"parent": "GPU-0aaa", "gpu_instance": 1, "compute_instance": 0}
    parts = [idle(0, name=name + kind, mig=mig) for kind in ("1g.10gb", "2g.20gb")]
    said = shown(seen(*parts, idle(1)))
    assert "1g.10gb" in said
    assert "2g.20gb" in said


def test_gpus_that_do_not_fit_are_summed_up() -> None:
    jobs = [job(n, f"GPU-{n}aaa") for n in range(11)]
    gpus = [*(busy(n, jobs[n]) for n in range(11)), *(idle(n) for n in range(11, 16))]
    said = shown(seen(*gpus, jobs=jobs), height=10)
    assert " … 9 more: 5 free, 4 busy; 44% used" in said


def test_a_machine_without_gpus_says_why() -> None:
    said = shown(seen(problem="there is no NVIDIA driver here: " + "install one " * 40), 40)
    assert said.splitlines()[0].startswith("no GPUs")
    assert "there is no NVIDIA driver here" in said


def test_a_daemon_that_is_away_is_said_over_what_was_last_seen() -> None:
    what = seen(idle(0))
    away = Seen(what.inventory, [], 0, trouble="no answer for 4 s")
    lines = panel.draw(away, History(), 80, 24, NOW)
    assert texts(lines)[-1].startswith("no answer for 4 s")
    row = next(line for line in lines if ("GiB" in "".join(text for text, _ in line)))
    assert len({style for _, style in row}) == 1, "what is old has no colours"


GPUS = st.sampled_from((0, 1, 2, 8, 16))
HOSTILE = "\x1b]0;title\x07\x1b[2J\n日本語\u202e" * 3


@settings(max_examples=60)
@given(GPUS, st.integers(1, 260), st.integers(1, 70), st.booleans(), st.booleans(), st.booleans())
def test_it_fits_every_screen_and_moves_no_cursor(
    count: int, width: int, height: int, is_mixed: bool, is_shared: bool, is_hostile: bool
) -> None:
    name = HOSTILE if is_hostile else "resnet"
    jobs = [
        job(n, f"GPU-{n}aaa", name=name, user=name, status="canceling" if n == 3 else "running")
        for n in range(count)
    ]
    gpus = [busy(n, *(jobs if is_shared else jobs[n : n + 1])) for n in range(count)]
    if count > 1:
        process = NOTEBOOK | {"command": name, "user": None}
        gpus[1] |= {"state": "foreign", "reason": name, "utilization": None, "memory_total": 0}
        gpus[1] |= {"processes": [process], "jobs": []}
        gpus[-1] |= {"temperature": None, "power": None, "power_limit": None, "jobs": ["job_gone"]}
    if is_mixed:
        for one in gpus[::2]:
            one["name"] = name
    history = History()
    history.note(gpus, 5)
    waits = job(99, status="pending", waiting=name, name=None)
    what = seen(*gpus, jobs=[*jobs, waits], pending=3, problem=name if is_hostile else None)
    lines = panel.draw(what, history, width, height, NOW)
    assert len(lines) == height
    for text in texts(lines):
        assert columns(text) <= width
        assert text.isprintable()
        plain = glyphs.in_ascii(text)
        assert plain.isascii()
        assert len(plain) == columns(text)


def test_a_line_keeps_its_places_while_figures_change() -> None:
    def row(used: int) -> Line:
        what = seen(gpu(0, utilization=used, memory_used=used * GIB // 2, power=float(used * 7)))
        lines = panel.draw(what, History(), 80, 24, NOW)
        return next(line for line in lines if any("GiB" in text for text, _ in line))

    assert {len(row(used)) for used in (0, 7, 42, 100)} == {len(row(1))}
    assert {tuple(columns(text) for text, _ in row(used)) for used in (0, 7, 42, 100)} == {
        tuple(columns(text) for text, _ in row(1))
    }


# The last minute


def line_of(history: History, width: int) -> str:
    return glyphs.sparkline(history.columns("GPU-0aaa", width))


def test_the_last_minute_is_the_daemons_where_it_has_one() -> None:
    history = History()
    history.note([gpu(0, utilization=100, recent=[0] * 30 + [100] * 30)], 1000)
    assert line_of(history, 60) == "▁" * 30 + "▇" * 30
    assert line_of(history, 6)[-3:] == "▇▇▇"


def test_elsewhere_it_is_what_was_seen_here_with_a_gap_while_nobody_answered() -> None:
    history = History()
    for second, used in ((100, 0), (102, 100), (110, 50)):
        if second == 110:
            history.gap(104)
        history.note([gpu(0, utilization=used, recent=[])], second)
    assert line_of(history, 60)[-11:] == "▁▁▇▇      ▄"


def test_seconds_in_which_no_job_had_it_are_what_was_seen_here() -> None:
    history = History()
    history.note([gpu(0, utilization=0, recent=[100, 100, None, None])], 100)
    history.note([gpu(0, utilization=50, recent=[100, 100, None, None, None])], 101)
    assert line_of(history, 60)[-5:] == "▇▇ ▁▄"


def test_what_was_seen_stays_where_the_daemon_began_later() -> None:
    history = History()
    history.note([gpu(0, utilization=100)], 100)
    history.note([gpu(0, utilization=0, recent=[0, 0])], 105)
    assert line_of(history, 60)[-6:] == "▇▇▇▇▁▁"


def test_a_column_stays_what_it_is_until_it_leaves() -> None:
    history = History()
    drawn = []
    for second in range(200):
        history.note([gpu(0, utilization=second * 7 % 101)], second)
        if second >= 120 and second % 4 == 3:
            drawn.append(history.columns("GPU-0aaa", 15))
    assert all(len(one) == 15 and None not in one for one in drawn)
    assert all(one[1:] == other[:-1] for one, other in pairwise(drawn))


def test_nothing_is_known_of_a_gpu_that_says_nothing() -> None:
    history = History()
    assert line_of(history, 5) == "     "
    history.note([gpu(0, utilization=None)], 3)
    assert line_of(history, 5) == "     "


# Characters


@pytest.mark.parametrize(
    ("environ", "is_unicode"),
    [
        ({"LANG": "de_DE.UTF-8"}, True),
        ({"LANG": "C.utf8"}, True),
        ({"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),
        ({"LANG": "C.UTF-8", "LC_CTYPE": "C.UTF-8"}, True),
        ({"LC_CTYPE": "en_US.UTF-8"}, True),
        ({"LANG": "de_DE"}, False),
        ({}, False),
        ({"LANG": "de_DE.UTF-8", "TERM": "linux"}, False),
    ],
)
def test_characters_are_those_of_locale_and_terminal(
    environ: dict[str, str], is_unicode: bool
) -> None:
    assert glyphs.is_unicode(environ) is is_unicode


@given(st.floats(-1, 2), st.integers(0, 40))
def test_a_bar_is_as_wide_as_it_should_be(share: float, width: int) -> None:
    filled, rest = glyphs.bar(share, width)
    assert len(filled) + len(rest) == width
    assert (rest == "") == (round(share * 2 * width) >= 2 * width - 1) or width == 0

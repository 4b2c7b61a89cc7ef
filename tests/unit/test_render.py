"""What people see."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcctl import render, tables
from aitbcd import causes
from aitbcd.model import SeenProcess
from tests.documents import blocks

NOW = datetime(2026, 2, 13, 12, 0, 0, tzinfo=UTC)


def job(**changes: Any) -> dict[str, Any]:
    return {
        "job_id": "job_7k3m9q2x",
        "number": 42,
        "name": "resnet",
        "user": "ada",
        "status": "running",
        "progress": 45,
        "created_at": "2026-02-13T11:00:00Z",
        "started_at": "2026-02-13T11:58:30Z",
        "attempt": 1,
        "waiting": None,
        "miner_id": "miner_abcdefgh",
        "gpu_uuids": [],
        "estimated_completion": None,
    } | changes


FAILED = {
    "status": "failed",
    "finished_at": "2026-02-13T11:59:00Z",
    "exit_code": 3,
    "signal": None,
    "reason": "exit",
    "message": None,
    "results": "kept",
    "result_path": "/state/results/job_7k3m9q2x",
}


@given(st.text())
def test_no_text_reaches_a_terminal_as_a_command(text: str) -> None:
    shown = render.plain(text)
    assert all(char.isprintable() or char in "\u200c\u200d" for char in shown)
    if text.isprintable():
        assert shown == text


def test_a_byte_that_is_no_utf8_is_shown_as_the_byte() -> None:
    assert render.plain(os.fsdecode(b"no\xff\x80")) == r"no\xff\x80"
    assert render.plain("\ud800\x1b") == r"\ud800\x1b"


@given(st.binary(), st.lists(st.integers(0, 60), max_size=5))
def test_a_log_is_cleaned_the_same_however_it_is_cut(log: bytes, cuts: list[int]) -> None:
    whole = render.LogCleaner()
    expected = whole.feed(log) + whole.end()
    pieces, at, got = render.LogCleaner(), 0, b""
    for cut in sorted(cut % (len(log) + 1) for cut in cuts):
        got += pieces.feed(log[at:cut])
        at = cut
    assert got + pieces.feed(log[at:]) + pieces.end() == expected


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        (b"plain \xc3\xa4\r\n\t 45%\r", b"plain \xc3\xa4\r\n\t 45%\r"),
        (b"\x1b[1;31mred\x1b[0m \x1b[K\x1b[A", b"\x1b[1;31mred\x1b[0m \x1b[K\x1b[A"),
        (b"\x1b]0;title\x07", b"^[]0;title^G"),
        (b"\x1b[6n\x1b[2;3H", b"^[[6n^[[2;3H"),
        (b"\x1bP+q\x1b\\", b"^[P+q^[\\"),
        (b"\xc2\x9b6n", b"\\x9b6n"),
        (b"\x00\x7f", b"^@^?"),
        (b"cut \x1b[", b"cut ^[["),
    ],
)
def test_a_log_on_a_terminal_may_colour_but_not_command(log: bytes, shown: bytes) -> None:
    cleaner = render.LogCleaner()
    assert cleaner.feed(log) + cleaner.end() == shown


def test_a_name_cannot_break_the_table() -> None:
    table = tables.job_table([job(name="a\x1b[31m\nb")], None, NOW)
    assert "\x1b" not in table
    assert len(table.split("\n")) == 2
    assert r"a\x1b[31m\nb" in table


@given(
    st.lists(st.text(max_size=120), min_size=1, max_size=6),
    st.integers(min_value=20, max_value=200),
)
def test_a_table_fits_the_terminal(names: list[str], width: int) -> None:
    jobs = [job(name=name, number=number) for number, name in enumerate(names)]
    jobs.append(job(status="pending", started_at=None, waiting="for 2 cores: " + "x" * 200))
    for line in tables.job_table(jobs, width, NOW).split("\n"):
        assert tables.columns(line) <= width


def test_a_long_name_leaves_room_for_what_is_short() -> None:
    failed = job(name="x" * 60, status="failed", reason="exit", exit_code=3)
    shown = tables.job_table([failed], 80, NOW)
    assert "exit code 3" in shown


def test_a_job_without_a_name_is_known_by_its_command() -> None:
    assert "make all" in tables.job_table([job(name=None, command_line="make all")], 80, NOW)


def test_a_table_for_a_pipe_cuts_nothing() -> None:
    name = "x" * 300
    assert name in tables.job_table([job(name=name)], None, NOW)


def test_the_user_is_shown_where_there_are_several() -> None:
    assert "USER" not in tables.job_table([job(), job()], None, NOW)
    assert "USER" in tables.job_table([job(), job(user="bob")], None, NOW)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"status": "completed", "exit_code": 0}, "completed after 30 s"),
        ({}, "failed after 30 s: exit code 3"),
        ({"exit_code": None, "signal": 9}, "failed after 30 s: signal 9 (SIGKILL)"),
        ({"message": "no such file\x07"}, r"failed after 30 s: no such file\x07"),
        ({"status": "canceled", "started_at": None, "exit_code": None, "reason": "canceled"},
         "canceled: canceled"),
    ],
)  # fmt: skip
def test_the_ending_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    assert render.ending(job(**FAILED | changes)) == sentence


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.25, "0.2 s"),
        (59, "59 s"),
        (60, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (7260, "2 h 01 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_is_shown_in_two_units(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")],
)
def test_a_size_is_shown_in_binary_units(count: int, text: str) -> None:
    assert render.size(count) == text


def test_details_name_variables_and_commands_as_a_shell_would() -> None:
    details = job(
        **FAILED,
        command=["sh", "-c", "a | b", {"b64": "/w=="}],
        shell=False,
        cwd="/work",
        env_names=["HOME", {"b64": "/w=="}],
        requested={"cpus": 4, "gpus": 0, "memory": 1 << 30, "timeout_s": 7200.0,
                   "priority": "high", "retries": 2, "artifacts": ["*.pt"]},
        attempts=[{"attempt": 1, "started_at": "2026-02-13T11:58:30.000001Z",
                   "finished_at": "2026-02-13T11:59:00.000001Z", "exit_code": 3, "signal": None,
                   "reason": "exit", "max_rss": 1 << 20, "memory_peak": 3 << 20}],
        events=[{"seq": 7, "time": "2026-02-13T11:59:00.000001Z", "status": "failed",
                 "attempt": 1, "reason": "exit", "message": "exit code 3"}],
        result_files=5,
        result_bytes=2048,
        manifest_sha256="0" * 64,
    )  # fmt: skip
    text = render.detail_block(details, NOW)
    assert r"sh -c 'a | b' '\xff'" in text
    assert "4 cores, 1.0 GiB of memory, at most 2 h 00 min, high priority, 2 retries" in text
    assert "exit code 3  peak 1.0 MiB  with all processes and cached files 3.0 MiB" in text
    assert "failed: exit code 3" in text
    assert r"HOME \xff" in text


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [(0, "EUR", "0.00 EUR"), (0.05, "EUR", "0.05 EUR"), (1234.5, None, "1234.50"),
     (0.000123, "", "0.000123")],
)  # fmt: skip
def test_money_has_two_decimals_or_as_many_as_it_needs(
    amount: float, currency: str | None, text: str
) -> None:
    assert render.money(amount, currency) == text


def queued(**changes: Any) -> dict[str, Any]:
    return (
        job(cpus=1, gpus=0, since="2026-02-13T11:58:30Z", until=None, is_mine=True, waiting=None)
        | changes
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_what_a_job_waits_for_is_shown_whole_on_a_narrow_terminal(width: int) -> None:
    reason = "waits for 2 of 2 GPUs; job_39d1x4wh holds 4; job_q28sgk8g holds one"
    jobs = [
        queued(name="a-name-that-is-much-longer-than-it-need-be", until="2026-02-13T12:30:00Z"),
        queued(status="pending", progress=0, gpus=2, waiting=reason),
    ]
    lines = tables.queue_table(jobs, width, NOW).splitlines()
    assert all(len(line) <= width for line in lines)
    assert " ".join(" ".join(lines).split()).endswith(reason)
    assert len([line for line in lines if "job_7k3m9q2x" in line]) == 2


def test_the_queue_has_a_line_a_job_where_there_is_room_and_in_a_pipe() -> None:
    jobs = [queued(), queued(status="pending", waiting="waits for 1 CPU core (0 of 2 free)")]
    for width in (None, 120):
        head, _, waits = tables.queue_table(jobs, width, NOW).splitlines()
        assert waits.index("waits for") == head.index("NOTE")


def test_a_table_leaves_out_what_is_empty_and_cuts_what_may_be_cut() -> None:
    rows = [["a", "", "1", "x" * 50], ["bb", "", "22", "y"]]
    shown = tables.table(["K", "E", "N", "NOTE"], rows, 30, right=["N"], giving=["NOTE"])
    assert shown.splitlines() == ["K    N  NOTE", f"a    1  {'x' * 21}…", "bb  22  y"]


def test_long_words_of_a_fact_stand_below_each_other_and_a_path_stays_whole() -> None:
    waits = "waits behind 3 earlier jobs; job_9jvspc89 is next and waits for 1 CPU core (0 of 3)"
    path = "/state/" + "long" * 20
    text = render.status_block(job(waiting=waits, result_path=path), NOW, 40)
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("waiting    waits behind"))
    folded = lines[begin : lines.index(next(line for line in lines if line.startswith("submit")))]
    assert len(folded) > 2
    assert all(len(line) <= 40 for line in folded)
    assert all(line.startswith(" " * 11) for line in folded[1:])
    assert " ".join(line[11:].strip() for line in folded) == waits
    assert f"results    {path}" in lines
    assert waits in render.status_block(job(waiting=waits), NOW)


def test_a_failed_job_says_how_to_repeat_it_and_whom_to_ask() -> None:
    text = render.status_block(
        job(**FAILED, contact="ada, room 12", charge=0.5, currency="EUR"), NOW
    )
    assert "aitbcctl retry job_7k3m9q2x" in text
    assert "ada, room 12" in text
    assert "0.50 EUR" in text


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["  GPUs used 62 %, at most 98 %  idle 1 min 30 s of 2 h 00 min  1.40 kWh",
              "  GPU memory at most 60.0 GiB, its own 59.0 GiB"]),
        ({"idle_s": 0, "energy_j": 120.4}, ["  GPUs used 62 %, at most 98 %  120 J",
              "  GPU memory at most 60.0 GiB, its own 59.0 GiB"]),
        ({"utilization_mean": None, "utilization_peak": None, "idle_s": None, "energy_j": None,
          "job_memory_peak": None}, ["  GPU memory at most 60.0 GiB"]),
    ],
)  # fmt: skip
def test_what_a_jobs_gpus_did_is_told_in_few_words(
    changes: dict[str, Any], lines: list[str]
) -> None:
    use = {
        "interval_s": 2.0, "rows": 3600, "sampled_s": 7200.0, "utilization_mean": 62.4,
        "utilization_peak": 98, "memory_peak": 60 << 30, "job_memory_peak": 59 << 30,
        "energy_j": 5_040_000.0, "idle_s": 90.2,
    }  # fmt: skip
    attempt = {"attempt": 1, "started_at": "2026-02-13T11:58:30Z", "gpu_use": use | changes}
    shown = render.detail_block(job(attempts=[attempt], cwd="/"), NOW)
    assert [line for line in shown.splitlines() if line.startswith("  GPU")] == lines


def test_the_guide_shows_what_a_jobs_gpus_did_as_it_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    (shown,) = blocks("docs/guide.md", "GPUs", "console")
    assert shown.startswith("$ aitbcctl get @\n...\n")
    use = {
        "sampled_s": 7200.0, "utilization_mean": 62.0, "utilization_peak": 98, "idle_s": 1880.0,
        "memory_peak": round(61.2 * 2**30), "job_memory_peak": round(60.8 * 2**30),
        "energy_j": 1.02 * 3.6e6,
    }  # fmt: skip
    attempt = {
        "attempt": 1, "started_at": "2026-02-13T10:01:00Z", "finished_at": "2026-02-13T12:01:00Z",
        "exit_code": 0, "gpu_use": use,
    }  # fmt: skip
    lines = render.detail_block(job(attempts=[attempt], cwd="/"), NOW).splitlines()
    assert set(shown.splitlines()[2:]) <= set(lines)


def test_the_document_about_failures_shows_a_cause_as_it_is_shown() -> None:
    (shown,) = blocks("docs/failures.md", "", "console")
    stranger = SeenProcess(4711, "bob", "python -m notebook", 19 << 30, 0)
    clues = causes.Clues(stderr=b"torch.OutOfMemoryError: CUDA out of memory.", foreign=(stranger,))
    found = causes.find(clues)
    assert found is not None
    failed = FAILED | {
        "started_at": "2026-02-13T11:56:55Z",
        "message": f"exited with status 1: {found[0].message}",
        "cause": found[0].cause.value,
        "advice": causes.ADVICE[found[0].cause],
    }
    lines = render.status_block(job(**failed), NOW).splitlines()
    command, *rest = shown.splitlines()
    assert command == "$ aitbcctl status @"
    for line in rest:
        assert any(each.startswith(line.removesuffix("...")) for each in lines), line


@pytest.mark.parametrize(
    ("joules", "text"),
    [(0, "0 J"), (35_999, "35999 J"), (36_000, "10.0 Wh"), (3.6e6, "1.00 kWh")],
)
def test_energy_is_shown_in_what_it_is_paid_in(joules: float, text: str) -> None:
    assert render.energy(joules) == text

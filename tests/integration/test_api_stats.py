"""Statistics of a real daemon: what is counted, in whose days, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.conftest import CONFIG, Box, Json, User, problem, serving

FIGURES = {
    "submitted", "finished", "completed", "failed", "canceled", "success_rate",
    "average_completion_s", "wait_median_s", "wait_p95_s", "cpu_hours", "gpu_hours", "gpu_energy_j",
    "spent",
    "currency", "causes",
}  # fmt: skip


def stats(box: Box, **params: object) -> Json:
    answer = box.http.get("/v1/stats", params={key: str(value) for key, value in params.items()})
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A daemon that has run five jobs."""
    prices = '[pricing]\ncpu_hour = 3600\ncurrency = "EUR"\n'
    with serving(tmp_path_factory.mktemp("counted"), CONFIG + prices) as box:
        for _ in range(2):
            box.run("sleep", "0.2", name="nap", cpus=2)
        box.run("true", name="quick")
        box.run("false")
        job = box.submit("sleep", "1000")["job_id"]
        box.reached(job, "running")
        box.http.post(f"/v1/jobs/{job}/cancel", json={"force": True})
        box.ended(job)
        yield box


def test_figures_count_what_became_of_jobs(counted: Box) -> None:
    found = stats(counted)
    total = found["total"]
    assert total.keys() == FIGURES
    assert found["groups"] == []
    assert [total[name] for name in ("submitted", "finished", "completed", "failed", "canceled")] \
        == [5, 5, 3, 1, 1]  # fmt: skip
    assert total["success_rate"] == 0.75
    assert 0.1 < total["average_completion_s"] < 60
    assert 0 <= total["wait_median_s"] <= total["wait_p95_s"]
    assert total["cpu_hours"] > 0.8 / 3600
    assert (total["gpu_hours"], total["currency"]) == (0, "EUR")


def test_groups_add_up_to_the_whole(counted: Box) -> None:
    total = stats(counted)["total"]
    for by in ("user", "name", "day"):
        groups = stats(counted, by=by)["groups"]
        assert all(group.keys() == {"key", "is_rest", *FIGURES} for group in groups)
        for name in ("submitted", "completed", "failed", "canceled"):
            assert sum(group[name] for group in groups) == total[name], (by, name)
    names = {group["key"]: group["submitted"] for group in stats(counted, by="name")["groups"]}
    assert names == {"nap": 2, "quick": 1, None: 2}
    assert [group["key"] for group in stats(counted, by="user")["groups"]] == ["root"]


def test_days_are_those_of_the_zone(counted: Box) -> None:
    now = datetime.now(UTC)
    for zone, hours in (("Z", 0), ("+14:00", 14), ("-12:00", -12), ("Etc/GMT-14", 14)):
        days = [group["key"] for group in stats(counted, by="day", zone=zone)["groups"]]
        local = (now + timedelta(hours=hours)).date()
        assert days in ([local.isoformat()], [(local - timedelta(days=1)).isoformat(),
                                              local.isoformat()]), zone  # fmt: skip
        today = {"from": local - timedelta(days=1), "to": local, "zone": zone}
        assert stats(counted, **today)["total"]["submitted"] == 5, zone
        before = {"to": local - timedelta(days=2), "zone": zone}
        assert stats(counted, **before)["total"]["submitted"] == 0, zone
    plus = counted.http.get("/v1/stats?by=day&zone=+14:00").json()
    assert plus == stats(counted, by="day", zone="+14:00")
    assert stats(counted, by="day", zone="Europe/Berlin")["groups"]
    assert stats(counted, days=1)["total"]["submitted"] == 5
    assert stats(counted, **{"from": "0001-01-01", "to": "9999-12-31"})["total"]["finished"] == 5
    assert stats(counted, to="9999-12-31", zone="-12:00")["total"]["finished"] == 5
    assert stats(counted, **{"from": "2099-01-01"})["total"]["success_rate"] is None


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("zone=../../etc/passwd", "zone"), ("zone=/etc/localtime", "zone"), ("zone=", "zone"),
        ("zone=%00", "zone"), ("zone=Europe/Berlin%0a", "zone"), ("zone=" + "A/" * 5000, "zone"),
        ("zone=%2B25:00", "zone"), ("zone=%2B01:60", "zone"), ("zone=a/../b", "zone"),
        ("zone=%C3%A4", "zone"), ("zone=+1", "zone"), ("by=colour", "by"), ("by=", "by"),
        ("from=2026-02-30", "from"), ("to=yesterday", "to"), ("days=0", "days"),
        ("from=2026-01-01T00:00:00%2B99:00", "from"), ("limit=1", "limit"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(counted: Box, query: str, field: str) -> None:
    document = problem(counted.http.get(f"/v1/stats?{query}"), 422, "invalid-value")
    assert document["field"] == field
    assert len(document["detail"]) < 300


@pytest.mark.parametrize("zone", ["Mars/Phobos", "Europe", "posix", "right", "ab", "zone1970-tab"])
def test_a_zone_that_is_not_known_here_is_said(counted: Box, zone: str) -> None:
    answer = counted.http.get("/v1/stats", params={"zone": zone})
    assert problem(answer, 409, "not-satisfiable")["field"] == "zone"


def test_one_s_own_are_counted_and_everybodys_for_root(shared: Box, ada: User) -> None:
    where = shared.service.socket
    job = ada.ask(where, "POST", "/v1/jobs", {"argv": ["true"]}).json["job_id"]
    shared.ended(job)
    mine = ada.ask(where, "GET", "/v1/stats?by=user").json
    assert [group["key"] for group in mine["groups"]] == [ada.name]
    assert mine["total"]["submitted"] == 1
    assert ada.ask(where, "GET", "/v1/stats?all=true").status == 403
    assert stats(shared)["total"]["submitted"] == 0
    assert stats(shared, all="true")["total"]["submitted"] == 1

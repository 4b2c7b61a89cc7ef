from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from aitbcd import plans
from aitbcd.settings import Plan, Settings, parse

DAY_US = 86400 * 1_000_000
CONFIG = """
[plans.lab]
retention = "60d"
keep = "0"
[plans.pro]
retention = "1h"
[users.ann]
plan = "pro"
[groups.students]
plan = "free"
[groups.staff]
plan = "lab"
"""


def settings() -> Settings:
    return parse(CONFIG, Path("aitbcd.toml"))


def test_plans_of_the_specification_are_built_in() -> None:
    kept = {name: plan.retention_s / 86400 for name, plan in Settings().plans.items()}
    assert kept == {"free": 7, "pro": 30, "enterprise": 90}


def test_a_key_comes_before_a_user_and_a_user_before_his_groups() -> None:
    assert plans.name_of(settings(), "ann", ["staff"], "enterprise") == "enterprise"
    assert plans.name_of(settings(), "ann", ["staff"]) == "pro"
    assert plans.name_of(settings(), "bob", ["students", "staff", "audio"]) == "lab"
    assert plans.name_of(settings(), "bob", ["audio"]) == "free"


def test_a_plan_that_is_gone_counts_no_more() -> None:
    assert plans.name_of(settings(), "ann", [], "gone") == "pro"
    assert plans.get(settings(), "gone") == settings().plans["free"]


def test_a_configured_plan_replaces_the_built_in_one() -> None:
    assert plans.get(settings(), "pro") == Plan(3600.0)


def test_keep_reaches_as_far_as_the_plan_says() -> None:
    assert plans.keepable_until(Plan(86400.0), 10) == 10 + DAY_US
    assert plans.keepable_until(Plan(86400.0, 2 * 86400.0), 10) == 10 + 2 * DAY_US
    assert plans.keepable_until(plans.get(settings(), "lab"), 10) is None


@given(st.integers(0, 2**52), st.integers(0, 100 * 365 * 86400))
def test_nothing_expires_before_it_ended(finished_at: int, retention_s: int) -> None:
    expires = plans.expires_at(Plan(float(retention_s)), finished_at)
    assert expires - finished_at == retention_s * 1_000_000

"""Whose results are kept how long: plans, and the times that follow from them. Pure.

A job's plan is the one of the API key that submitted it, else its user's, else the best of his
groups', else ``free``. The configuration has the plans (``[plans.NAME]``).
"""

from __future__ import annotations

from collections.abc import Iterable

from aitbcd.settings import PLANS, Limits, Plan, Settings

DEFAULT = "free"


def name_of(settings: Settings, user: str, groups: Iterable[str], chosen: str | None = None) -> str:
    """Return the name of the plan of a user's job.

    Args:
        groups: names of the groups that the user is in.
        chosen: the plan that the API key has, if it has one; one that is gone counts no more.
    """
    if chosen is not None and chosen in settings.plans:
        return chosen
    if user in settings.users and (own := settings.users[user].plan) is not None:
        return own
    members = [settings.groups[group] for group in groups if group in settings.groups]
    named = [member.plan for member in members if member.plan is not None]
    return max(named, key=lambda name: settings.plans[name].retention_s, default=DEFAULT)


def limits_of(settings: Settings, user: str, groups: Iterable[str]) -> Limits:
    """Return what a user may have at a time.

    Each limit is the user's own, else the most of his groups', else his plan's, else everybody's.
    """
    groups = tuple(groups)
    own = settings.users.get(user)
    members = [settings.groups[group] for group in groups if group in settings.groups]
    plan = get(settings, name_of(settings, user, groups))

    def first(key: str) -> int | None:
        of_groups = [most for member in members if (most := getattr(member, key)) is not None]
        found = (
            getattr(own, key, None),
            max(of_groups, default=None),
            getattr(plan, key),
            getattr(settings.limits, key),
        )
        return next((most for most in found if most is not None), None)

    return Limits(first("running"), first("gpus"), first("pending"))


def get(settings: Settings, name: str) -> Plan:
    """Return a plan; ``free`` where it is configured no more."""
    return settings.plans.get(name) or settings.plans.get(DEFAULT) or PLANS[DEFAULT]


def expires_at(plan: Plan, finished_at: int) -> int:
    """Return when results of a job that ended then expire, microseconds."""
    return finished_at + round(plan.retention_s * 1e6)


def keepable_until(plan: Plan, now: int) -> int | None:
    """Return until when ``keep`` may put an expiry off; None where the plan has no ``keep``."""
    keep_s = plan.retention_s if plan.keep_s is None else plan.keep_s
    return now + round(keep_s * 1e6) if keep_s else None

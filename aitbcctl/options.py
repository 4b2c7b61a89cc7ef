"""What the verbs share: how a job is named, ``--json``, the client."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from aitbcctl.client import Client, Json
from aitbcctl.refusals import Usage
from aitbcctl.terminal import tell_of_gone
from aitbcd.errors import AitbcError, NoSuchJob

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_Command = Callable[..., Any]
#: ``aitbcd.model.JobState``; its import would cost each call as much as all the rest of it.
STATES = ("pending", "assigned", "running", "canceling", "completed", "failed", "canceled")
SORTS = [sign + key for key in ("created", "finished", "duration", "name") for sign in ("", "-")]


def job_argument(function: _Command) -> _Command:
    """Give a verb its job: ``ID`` or ``--job-id ID``; ``named_job`` reads the two."""
    function = click.option("--job-id", metavar="ID", help="The same as ID.", shell_complete=jobs)(
        function
    )
    return click.argument("job", metavar="[ID]", required=False, shell_complete=jobs)(function)


def job_arguments(function: _Command, metavar: str = "[ID]...") -> _Command:
    """Give a verb its jobs: ``ID...`` or ``--job-id ID``; ``named_jobs`` reads the two."""
    function = click.option("--job-id", metavar="ID", help="The same as ID.", shell_complete=jobs)(
        function
    )
    return click.argument("named", metavar=metavar, nargs=-1, shell_complete=jobs)(function)


#: The states in which a verb has something to do; not said here: any.
_USEFUL = {
    "cancel": "pending,assigned,running,canceling",
    "watch": "pending,assigned,running,canceling",
    "download": "completed,failed,canceled",
    "verify": "completed,failed,canceled",
    "delete": "completed,failed,canceled",
    "rm": "completed,failed,canceled",
    "keep": "completed,failed,canceled",
    "retry": "completed,failed,canceled",
    "share": "completed,failed,canceled",
}
_OFFERED = 100


def jobs(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer one's latest jobs, with their names; nothing where no daemon answers at once."""
    from click.shell_completion import CompletionItem

    try:
        states = _USEFUL.get(ctx.info_name or "")
        with Client(os.environ).open(
            "GET", f"/v1/jobs?limit={_OFFERED}" + (f"&status={states}" if states else ""),
            timeout_s=2.0,
        ) as response:  # fmt: skip
            found = json.loads(response.read())["jobs"]
    except (AitbcError, ValueError, KeyError):
        return []
    return [
        CompletionItem(job["job_id"], help=_about(job))
        for job in found
        if job["job_id"].startswith(begun)
    ]


def gpus(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer the UUIDs of the machine's GPUs, with their names.

    Of one that is divided its MIG devices, and where that means something itself: all of them, or
    any.
    """
    from click.shell_completion import CompletionItem

    from aitbcctl import devices

    offered: dict[str, str] = {}
    for gpu in _gpus():
        if gpu.get("mig") and ctx.info_name != "test":
            offered.setdefault(gpu["mig"]["parent"], f"{gpu['index']}, divided")
        offered[gpu["uuid"]] = f"{devices.label(gpu)}, {devices.model(gpu)}, {gpu['state']}"
    return [
        CompletionItem(uuid, help=about)
        for uuid, about in offered.items()
        if uuid.startswith(begun)
    ]


def models(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer the models of the machine's GPUs, as one word, which means the same."""
    from click.shell_completion import CompletionItem

    from aitbcctl.devices import model

    names = dict.fromkeys(model(gpu) for gpu in _gpus())
    words = {name.replace(" ", "-"): name for name in names}
    return [
        CompletionItem(word, help=name if name != word else None)
        for word, name in words.items()
        if word.casefold().startswith(begun.casefold())
    ]


def _gpus() -> list[Json]:
    """Return the machine's GPUs, none where that cannot be told at once."""
    try:
        with Client(os.environ).open("GET", "/v1/gpus", timeout_s=2.0) as response:
            found: list[Json] = json.loads(response.read())["gpus"]
            return found
    except (AitbcError, ValueError, KeyError):
        return []


def _about(job: Json) -> str:
    from aitbcctl.render import plain

    return f"{plain(job['name'])[:24]}, {job['status']}" if job["name"] else str(job["status"])


def completions(words: Iterable[str]) -> list[CompletionItem]:
    """Return words for the shell to offer."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words]


def folders(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Let the shell complete a folder: what is wrong with one, the verb says in its own words."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="dir")]


def files(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Let the shell complete a file."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="file")]


def json_option(text: str) -> Callable[[_Command], _Command]:
    """Give a verb ``--json``, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def named_job(job: str | None, job_id: str | None) -> str:
    """Return the one job that was named.

    Raises:
        Usage: both or none were given.
        NoSuchJob: it is a path.
    """
    if job is not None and job_id is not None:
        raise Usage(f"name the job once: you gave {job!r} and --job-id {job_id!r}")
    ref = job if job_id is None else job_id
    if not ref:
        raise Usage("name the job: its id, number or unique prefix, or @ for your latest one")
    if "/" in ref:
        # In a URL it would stand for what is below a job.
        hint = "your jobs are listed by: aitbcctl list"
        raise NoSuchJob(f"there is no job {ref}: a path names none", hint=hint)
    return ref


def named_jobs(named: Sequence[str], job_id: str | None) -> list[str]:
    """Return the jobs that were named, at least one.

    Raises:
        Usage: both kinds or none were given.
    """
    first = named_job(next(iter(named), None), job_id)
    return [first, *(named_job(job, None) for job in named[1:])]


class _States(click.ParamType):  # type: ignore[type-arg]  # generic only in newer clicks
    """A state of jobs, or several with commas."""

    name = "status"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        for state in value.split(","):
            if state not in STATES:
                self.fail(f"{state!r} is no state: expected {', '.join(map(repr, STATES))}", param)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return completions(state for state in STATES if state.startswith(incomplete))


def filter_options(function: _Command) -> _Command:
    """Give a verb the options that choose among jobs; ``filters`` reads them."""
    for option in reversed((
        click.option("--status", type=_States(), multiple=True, metavar="STATUS",
                     help=f"Only jobs in this state ({', '.join(STATES)}). Repeatable."),
        *_PERIOD,
        click.option("--user", metavar="USER", help="Only this user's."),
        click.option("--name", metavar="NAME", help="Only of this name; * and ? are wildcards."),
        click.option("--sort", type=click.Choice(SORTS), metavar="KEY",
                     help="created (the default), finished, duration or name; -KEY reverses it."),
        click.option("--all", "is_all", is_flag=True, help="Everybody's; for administrators."),
    )):  # fmt: skip
        function = option(function)
    return function


def period_options(function: _Command) -> _Command:
    """Give a verb ``--days``, ``--from`` and ``--to``; ``period`` reads them."""
    for option in reversed(_PERIOD):
        function = option(function)
    return function


_PERIOD = (
    click.option("--days", type=click.IntRange(min=1), metavar="N", help="Of the last N days."),
    click.option("--from", "since", metavar="DATE", help="From this day on (yours), or time."),
    click.option("--to", "until", metavar="DATE", help="To this day, included, or time."),
)


def period(days: int | None, since: str | None, until: str | None) -> dict[str, object]:
    """Return ``from`` and ``to`` as the API takes them."""
    if days is not None and since is not None:
        raise Usage("say --days or --from, not both")
    if days is None and since is None and until is None:
        return {}
    from datetime import UTC, datetime

    from aitbcctl import dates

    begin = (
        dates.days_before(datetime.now(UTC), days) if days is not None
        else None if since is None else dates.since(since)
    )  # fmt: skip
    end = None if until is None else dates.until(until)
    if since and begin and end and not dates.is_before(begin, end):
        raise Usage(f"--from {since!r} is not before --to {until!r}")
    return {"from": begin, "to": end}


def filters(
    status: Sequence[str],
    days: int | None,
    since: str | None,
    until: str | None,
    user: str | None,
    name: str | None,
    sort: str | None,
    is_all: bool,
) -> dict[str, object]:
    """Return the query that the options of ``filter_options`` stand for."""
    return {
        "status": ",".join(status) or None,
        **period(days, since, until),
        "user": user,
        "name": name,
        "sort": sort,
        "all": is_all or None,
    }


def all_pages(client: Client, path: str, field: str) -> list[Json]:
    """Return all of a list that one person can overlook."""
    page = client.get(path)
    found: list[Json] = page[field]
    while page.get("next") is not None:
        page = client.get(path, after=page["next"])
        found += page[field]
    return found


def client() -> Client:
    """Return a client for the daemon that this environment names."""
    return Client(os.environ, tell_of_gone)

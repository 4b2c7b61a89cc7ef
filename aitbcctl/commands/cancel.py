"""``aitbcctl cancel``: ends a job and says what became of that."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from aitbcctl import following, options, render
from aitbcctl.client import Client, Json, job_path
from aitbcctl.terminal import is_meant, put, put_json, say


@click.command("cancel")
@options.job_argument
@click.option("--force", is_flag=True, help="Do not ask, and kill at once, without grace.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; the job keeps its grace.")
@options.json_option("Print the status that it ended with.")
def command(job: str | None, job_id: str | None, force: bool, yes: bool, as_json: bool) -> int:
    """End a job: SIGTERM to all it started, and after a grace SIGKILL.

    What it wrote until then is kept as its result. A waiting job is canceled at once. Asks first,
    on a terminal only. The exit code is 0 when the job was canceled, 1 when it ended otherwise.

    \b
    Examples:
      aitbcctl cancel job_7k3m9q2x
      aitbcctl cancel --force 42
    """
    client = options.client()
    status = following.job(client, options.named_job(job, job_id))
    if not (force or yes or render.is_final(status) or _is_meant(status)):
        say("not canceled")
        return 1
    body = b'{"force": true}' if force else b""
    status = client.post(job_path(status["job_id"], "cancel"), body)
    if not render.is_final(status):
        status = _wait(client, status)
    put_json(status) if as_json else put(f"{status['job_id']} {_became(status)}")
    return 0 if status["status"] == "canceled" else 1


def _is_meant(status: Json) -> bool:
    return is_meant(f"Cancel {render.called(status)}, {render.stands(status)}?")


def _wait(client: Client, status: Json) -> Json:
    job_id = status["job_id"]
    say(f"{job_id} {status['status']}: waiting until nothing of it runs")
    try:
        return following.ended(client, job_id)
    except KeyboardInterrupt:
        say(f"\nleft; {job_id} is still being canceled: aitbcctl status {job_id}")
        raise


def _became(status: Json) -> str:
    if status.get("reason") == "cancellation_failed":
        return f"cancellation failed: {render.plain(status.get('message') or '')}"
    if status["status"] != "canceled":
        return render.ending(status, datetime.now(UTC))
    return "canceled" if status.get("started_at") else "canceled before it started"

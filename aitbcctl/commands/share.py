"""``aitbcctl share``: others may read one job's results."""

from __future__ import annotations

import json

import click

from aitbcctl import options, tables, terminal
from aitbcctl.client import Client, Json, job_path
from aitbcctl.refusals import Usage
from aitbcctl.render import plain, when
from aitbcctl.terminal import put, put_json, say


@click.command("share")
@options.job_argument
@click.option("--expires", metavar="TIME", help="After this time: 12h, 7d; default: 7d.")
@click.option("--with", "user", metavar="USER", help="For this user of the machine; no link.")
@click.option("--list", "is_list", is_flag=True, help="Show your shares, or those of the job.")
@click.option("--revoke", is_flag=True, help="End all shares of the job.")
@options.json_option("Print it as the API gives it: url, expires_at, ...")
def command(
    job: str | None,
    job_id: str | None,
    expires: str | None,
    user: str | None,
    is_list: bool,
    revoke: bool,
    as_json: bool,
) -> int:
    """Share a job's results: print a link that anyone who holds it can download them by.

    With --with the user does that with the job's id instead, and verifies them. A share reads that
    one job, ends at its time, and never outlives the results.

    \b
    Examples:
      aitbcctl share job_7k3m9q2x --expires 7d
      aitbcctl share job_7k3m9q2x --with bob
      aitbcctl share --list
      aitbcctl share job_7k3m9q2x --revoke
    """
    if ((is_list or revoke) and (expires or user)) or (is_list and revoke):
        raise Usage("--list, --revoke, and a new share with --expires or --with are three things")
    client = options.client()
    if is_list:
        ref = None if job is None and job_id is None else options.named_job(job, job_id)
        return _list(client, ref, as_json)
    ref = options.named_job(job, job_id)
    if revoke:
        return _revoke(client, ref, as_json)
    wish = {"expires": expires, "with": user}
    made = client.post(job_path(ref, "share"), json.dumps(wish).encode())
    put_json(made) if as_json else _tell(made)
    return 0


def _tell(made: Json) -> None:
    until = f"until {when(made['expires_at'])}"
    if made.get("limited_by_results"):
        until += ", when the results expire"
    if made["url"]:
        put(made["url"])
        say(f"whoever has this link can read the results of {made['job_id']} {until}")
    else:
        put(f"{plain(made['with'])} can read the results of {made['job_id']} {until}:")
        put(f"  aitbcctl download {made['job_id']}")


def _list(client: Client, ref: str | None, as_json: bool) -> int:
    path = "/v1/shares" if ref is None else job_path(ref, "shares")
    shares = options.all_pages(client, path, "shares")
    if as_json:
        put_json({"shares": shares})
    elif shares:
        put(tables.share_table(shares, terminal.columns(1)))
    else:
        say("nothing is shared")
    return 0


def _revoke(client: Client, ref: str, as_json: bool) -> int:
    answer = client.delete(job_path(ref, "shares"))
    count = answer["revoked"]
    if as_json:
        put_json(answer)
    else:
        put(f"{count} share{'s' * (count != 1)} revoked" if count else "it was not shared")
    return 0

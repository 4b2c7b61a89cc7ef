"""``aitbcctl key``: API keys for clients that come over TCP."""

from __future__ import annotations

import json

import click

from aitbcctl import options, tables, terminal
from aitbcctl.client import quote
from aitbcctl.render import plain, when
from aitbcctl.terminal import put, put_json, say


@click.group("key")
def command() -> None:
    """Make, list and revoke API keys: who sends one over TCP (X-Api-Key) is its owner.

    \b
    Examples:
      aitbcctl key create --name laptop --expires 90d
      aitbcctl key list
      aitbcctl key revoke laptop
    """


@command.command("create")
@click.option("--name", required=True, metavar="NAME", help="What it is for; to revoke it by.")
@click.option("--expires", metavar="TIME", help="After this time: 90d; default: never.")
@click.option("--plan", metavar="PLAN", help="Of what it submits; default: yours.")
@click.option("--read-only", is_flag=True, help="It can look, and change nothing.")
@options.json_option("Print it as the API gives it; the secret is key.")
def create(name: str, expires: str | None, plan: str | None, read_only: bool, as_json: bool) -> int:
    """Make a key and print it, this once: only its checksum is stored.

    \b
    Example:
      AITBC_API_KEY=$(aitbcctl key create --name laptop)
    """
    wish = {"name": name, "expires": expires, "plan": plan, "read_only": read_only}
    made = options.client().post("/v1/keys", json.dumps(wish).encode())
    if as_json:
        put_json(made)
        return 0
    put(made["key"])
    until = (
        f"valid until {when(made['expires_at'])}" if made.get("expires_at") else "valid for ever"
    )
    say(
        f"this is key {plain(made['name'])}, {until}; it is not shown again\n"
        "use it with AITBC_URL and AITBC_API_KEY, or as the header X-Api-Key"
    )
    return 0


@command.command("list")
@options.json_option("Print them as the API gives them.")
def list_keys(as_json: bool) -> int:
    """List your keys; not their secrets, which nobody knows any more.

    \b
    Example:
      aitbcctl key list
    """
    keys = options.all_pages(options.client(), "/v1/keys", "keys")
    if as_json:
        put_json({"keys": keys})
    elif keys:
        put(tables.key_table(keys, terminal.columns(1)))
    else:
        say("no keys")
    return 0


@command.command("revoke")
@click.argument("key", metavar="NAME")
@options.json_option("Print how many were revoked.")
def revoke(key: str, as_json: bool) -> int:
    """Revoke a key, by its name or id; it is refused from now on.

    \b
    Example:
      aitbcctl key revoke laptop
    """
    answer = options.client().delete(f"/v1/keys/{quote(key)}")
    put_json(answer) if as_json else put(f"{plain(key)} revoked")
    return 0

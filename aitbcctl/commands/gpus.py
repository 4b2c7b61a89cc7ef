"""``aitbcctl gpus``: the machine's GPUs, and who uses them; ``test``, ``drain``, ``resume``."""

from __future__ import annotations

import json

import click

from aitbcctl import devices, options, terminal
from aitbcctl.client import Client, Json, quote
from aitbcctl.refusals import Usage
from aitbcctl.render import plain
from aitbcctl.terminal import put, put_json, say

#: The daemon looks no more often.
_LEAST_S = 1.0
_MOST_S = 3600.0


@click.group("gpus", invoke_without_command=True, subcommand_metavar="[test|drain|resume]")
@options.json_option('Print {"problem": ..., "gpus": [...]}.')
@click.option("--watch", "is_live", is_flag=True, help="Keep showing them, until q or ^C.")
@click.option("--interval", type=click.FloatRange(_LEAST_S, _MOST_S), metavar="SECONDS",
              help="With --watch: how often to look, every second if not said.")  # fmt: skip
@click.pass_context
def command(context: click.Context, as_json: bool, is_live: bool, interval: float | None) -> int:
    """Show the machine's GPUs and who uses them.

    \b
    States:
      free         takes a job
      busy         jobs use it
      foreign      somebody uses it past the queue
      drained      takes no new job: a fault, or an administrator's wish
      quarantined  a job's memory did not come back
      lost         the driver cannot reach it

    \b
    Examples:
      aitbcctl gpus
      aitbcctl gpus --watch
      aitbcctl gpus test
      aitbcctl gpus drain 3 --reason "new fan on Monday"
      aitbcctl gpus resume GPU-5a1c
    """
    if is_live or interval is not None:
        return _watch(context.invoked_subcommand, as_json, is_live, interval or _LEAST_S)
    if context.invoked_subcommand is not None:
        return 0
    inventory = options.client().get("/v1/gpus")
    if as_json:
        put_json(inventory)
        return 0
    if inventory["gpus"]:
        put(devices.gpu_table(inventory["gpus"], terminal.columns(1), inventory["problem"]))
    if versions := devices.driver_line(inventory):
        say(versions)
    if inventory["problem"]:
        say(plain(inventory["problem"]))
    return 0


def _watch(verb: str | None, as_json: bool, is_live: bool, interval_s: float) -> int:
    if not is_live:
        raise Usage("--interval says how often --watch looks: give both")
    if verb is not None or as_json:
        raise Usage(f"--watch goes without {verb or '--json'}")
    if not terminal.is_shown(1):
        raise Usage(
            "--watch draws on a terminal, and the output is none",
            hint="once, as text or as JSON: aitbcctl gpus, aitbcctl gpus --json",
        )
    from aitbcctl import monitor

    return monitor.run(options.client(), interval_s)


@command.command("test")
@click.argument("gpus", metavar="[GPU]...", nargs=-1, shell_complete=options.gpus)
@click.option(
    "--python",
    metavar="PATH",
    shell_complete=options.files,
    help="An interpreter that has torch; default: this program's own.",
)
@click.option("--no-drain", is_flag=True, help="Leave a GPU that fails in use.")
@click.option("--no-wait", is_flag=True, help="Only submit; print the ids of the jobs.")
@options.json_option('Print {"tests": [...]} with all that was found.')
def test(
    gpus: tuple[str, ...], python: str | None, no_drain: bool, no_wait: bool, as_json: bool
) -> int:
    """Test each GPU with torch, in a job of its own.

    GPU is as for drain; default: all. Where there are none the processor is tested. The jobs wait
    for their turn. Matrix products are compared with true ones, patterns are written through the
    memory and read back, and it is measured how fast it computes and copies: of known models that
    is judged too. Between several free GPUs copies are tried as well. What a job found is its
    result.

    A GPU that fails is drained, if you are an administrator. A drained one is tested after resume.

    \b
    Exit codes: 0 all passed, 1 a test failed, 4 not tested (no torch, or one
    without CUDA).

    \b
    Examples:
      aitbcctl gpus test
      aitbcctl gpus test 0 1 --python ~/venv/bin/python
    """
    from aitbcctl import trials

    return trials.run(
        gpus, python, is_waited_for=not no_wait, is_drained=not no_drain, as_json=as_json
    )


@command.command("drain")
@click.argument("gpu", metavar="GPU", shell_complete=options.gpus)
@click.option("--reason", required=True, help="Why, for those who wait.")
@options.json_option("Print the GPU as it is then.")
def drain(gpu: str, reason: str, as_json: bool) -> int:
    """Let GPU take no new job; what runs there goes on.

    GPU is its UUID, any unique beginning of it, or its number in the list; one that is divided
    (MIG) is meant with all of its parts. It stays drained over restarts and reboots, until resume.
    An administrator's.

    \b
    Example:
      aitbcctl gpus drain 3 --reason 'new fan'
    """
    return _change(gpu, "drain", json.dumps({"reason": reason}).encode(), as_json)


@command.command("resume")
@click.argument("gpu", metavar="GPU", shell_complete=options.gpus)
@options.json_option("Print the GPU as it is then.")
def resume(gpu: str, as_json: bool) -> int:
    """Let GPU take jobs again.

    It counts after drain, and in spite of the faults that the GPU has now; a new one drains it
    again. GPU is as for drain. An administrator's.

    \b
    Example:
      aitbcctl gpus resume 3
    """
    return _change(gpu, "resume", b"", as_json)


def _change(word: str, verb: str, body: bytes, as_json: bool) -> int:
    client = options.client()
    uuid = devices.named_uuid(client.get("/v1/gpus")["gpus"], word)
    changed = _post(client, uuid, verb, body)
    if as_json:
        put_json(changed)
    else:
        reason = f": {plain(changed['reason'])}" if changed["reason"] else ""
        # Of a divided one a part is told of.
        meant = changed if changed["uuid"] == uuid else changed | {"uuid": uuid, "mig": None}
        put(f"{devices.title(meant)} is {changed['state']}{reason}")
    return 0


def _post(client: Client, uuid: str, verb: str, body: bytes) -> Json:
    return client.post(f"/v1/gpus/{quote(uuid)}/{verb}", body)

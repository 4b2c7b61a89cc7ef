"""``aitbcctl logs``: what a job wrote, as bytes."""

from __future__ import annotations

import binascii

import click

from aitbcctl import following, options
from aitbcctl.terminal import put_json, say

#: Longer lines are cut: a log need not have any newline.
LINE_MAX = 1024 * 1024


@click.command("logs")
@options.job_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes, until it ends.")
@click.option(
    "--stream",
    type=click.Choice(["stdout", "stderr"]),
    help="Only this one, on our stdout; default: each on ours of the same name.",
)
@click.option("--tail", type=click.IntRange(min=0), metavar="LINES", help="Only the last lines.")
@options.json_option('Print each line as {"stream": ..., "text" or "b64": ...}.')
def command(
    job: str | None,
    job_id: str | None,
    follow: bool,
    stream: str | None,
    tail: int | None,
    as_json: bool,
) -> int:
    """Print what a job wrote to stdout and stderr.

    Into a pipe or a file the bytes go as they are; on a terminal, sequences that do more than
    colour or redraw text are shown instead of obeyed.

    \b
    Examples:
      aitbcctl logs -f job_7k3m9q2x
      aitbcctl logs --stream stderr --tail 20 @
    """
    client = options.client()
    status = following.job(client, options.named_job(job, job_id))
    job_id = status["job_id"]
    wanted = {stream: 1} if stream else {"stdout": 1, "stderr": 2}
    lines = _JsonLines() if as_json else None
    try:
        following.stream_logs(
            client,
            job_id,
            wanted,
            follow=follow,
            tail=tail,
            sink=None if lines is None else lines.put,
        )
    except KeyboardInterrupt:
        if follow:
            following.detached(job_id)
        raise
    if lines is not None:
        lines.end()
    if not follow and status["status"] == "pending" and not status["attempt"]:
        say(f"{job_id} waits, and has written nothing yet: aitbcctl logs -f {job_id}")
    return 0


class _JsonLines:
    """Pieces of logs -> JSON lines, one a line of the log."""

    def __init__(self) -> None:
        self._rests: dict[str, bytes] = {}

    def put(self, stream: str, data: bytes) -> None:
        *lines, rest = (self._rests.get(stream, b"") + data).split(b"\n")
        if len(rest) > LINE_MAX:
            lines.append(rest)
            rest = b""
        self._rests[stream] = rest
        for line in lines:
            self._print(stream, line)

    def end(self) -> None:
        """Print what had no newline."""
        for stream, rest in self._rests.items():
            if rest:
                self._print(stream, rest)

    def _print(self, stream: str, line: bytes) -> None:
        try:
            put_json({"stream": stream, "text": line.decode()}, line=True)
        except UnicodeDecodeError:
            encoded = binascii.b2a_base64(line, newline=False).decode()
            put_json({"stream": stream, "b64": encoded}, line=True)

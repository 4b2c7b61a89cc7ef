"""The daemon: builds all parts, serves until it is told to stop, and takes them down in order.

Start: folders and lock, the store, the launcher, the engine (which finds what runs), the sockets.
Stop, on SIGTERM or SIGINT: no new connections, requests end, the engine, the store. Jobs go on.
uvicorn's main loop is not used: it ticks ten times a second, and an idle daemon must not wake.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from aitbcd import __version__, certificate, machine, notify, paths, settings
from aitbcd.allotment import inventory
from aitbcd.api import activation, app
from aitbcd.api.activation import Handed
from aitbcd.api.context import Api
from aitbcd.api.keyring import Keyring
from aitbcd.api.socket import Clients, Server, check_free, shown_address
from aitbcd.certificate import Certificate
from aitbcd.clock import now_us
from aitbcd.devices import Inventory
from aitbcd.engine import Engine
from aitbcd.errors import AitbcError
from aitbcd.feed import Feed
from aitbcd.gpus import Claims, Drains, Gpus, Telling
from aitbcd.notify import Notifier
from aitbcd.paths import Paths
from aitbcd.reloading import Reloading
from aitbcd.results.watches import Watches
from aitbcd.runs import Runs
from aitbcd.settings import Settings
from aitbcd.state import StateFolder
from aitbcd.store import Store
from aitbcd.units import format_size

_LOG_FORMAT = "%(levelname)s %(message)s"
#: Seconds that requests may take to end when the daemon stops.
_STOP_GRACE_S = 5.0


def main() -> None:
    """Serve as the command line says."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Serve until a signal; return the exit code."""
    options = command_line().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    formatter = notify.Formatter(_LOG_FORMAT, is_journal=notify.is_journal(os.environ, 2))
    for handler in logging.root.handlers:
        handler.setFormatter(formatter)
    notifier = Notifier.of(os.environ, os.getpid())
    handed = Handed(None, [])
    try:
        handed = activation.take(os.environ, os.getpid())
        where = paths.resolve(
            state=options.state_dir,
            runtime=options.runtime_dir,
            config=options.config,
            environ=os.environ,
            uid=os.getuid(),
        )
        chosen = settings.load(where.config, is_named=where.config_is_named)
        encrypted = _certificate(chosen)
        is_separate = options.separate_launcher
        with StateFolder(where, is_separate=is_separate) as folder:
            folder.check()
            if handed.unix is None:
                check_free(where.socket)
            serving = _serve(where, chosen, encrypted, handed, notifier, is_separate=is_separate)
            uvloop.run(serving)
    except AitbcError as error:
        print(f"aitbcd: {error.detail}", file=sys.stderr)
        if error.hint:
            print(f"        {error.hint}", file=sys.stderr)
        activation.turn_away(handed, error)
        return error.exit_code
    return 0


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aitbcd",
        description="The job queue of this machine: accepts jobs, runs them, keeps their results.",
        epilog="Jobs are submitted with aitbcctl. 'aitbcd install' puts this installation under"
        " systemd, 'aitbcd uninstall' takes it out again; both have --help. 'aitbcd launcher"
        " STATE-DIR' runs the launcher alone, which the daemon otherwise starts.",
    )
    parser.add_argument("--state-dir", metavar="DIR", help="where the queue and results are kept")
    parser.add_argument("--runtime-dir", metavar="DIR", help="where the socket is made")
    parser.add_argument("--config", metavar="FILE", help="the configuration (TOML)")
    parser.add_argument(
        "--separate-launcher",
        action="store_true",
        help="the launcher is a service of its own; where it is root's, serve its groups",
    )
    parser.add_argument("--version", action="version", version=f"aitbcd {__version__}")
    return parser


def _certificate(chosen: Settings) -> Certificate | None:
    """Return what TCP is encrypted with, where the configuration says so.

    Raises:
        SettingsError: it is not what it should be.
    """
    if not chosen.server.certificate_files:
        return None
    found = certificate.load(*chosen.server.certificate_files)
    for doubt in found.doubts(time.time()):
        _say(f"the certificate {chosen.server.tls_cert}: {doubt}")
    return found


async def _serve(
    where: Paths,
    chosen: Settings,
    encrypted: Certificate | None,
    handed: Handed,
    notifier: Notifier,
    *,
    is_separate: bool,
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        this_machine = machine.look()
        drains = Drains(where.state / "gpus.json", this_machine.boot_id)
        runs = Runs(where, boot_id=this_machine.boot_id, is_separate=is_separate)
        claims = Claims(where, runs)
        gpus = Gpus(chosen.gpus, drains, claims.job_of, claims.learn)
        stack.push_async_callback(gpus.close)
        telling = Telling(gpus, chosen.gpus, drains)
        stack.push_async_callback(telling.close)
        gpus.open()
        store = await Store.open(where.db, now=now_us())
        stack.push_async_callback(store.close)
        stack.push_async_callback(runs.close)
        await runs.open()
        found = await gpus.look()
        feed = Feed()
        # Whose the launcher is says as whom jobs can run.
        uid = runs.launcher_uid if is_separate else os.getuid()
        engine = Engine(store, runs, feed, chosen, this_machine, where, gpus, uid=uid)
        stack.push_async_callback(engine.close)
        await engine.recover()
        watches = Watches()
        keyring = await Keyring.load(store)
        api = Api(engine, store, feed, chosen, where, this_machine, watches, gpus, keyring)
        api.is_separate = uid != os.getuid()
        api.certificate = encrypted
        stack.callback(api.close)
        clients = Clients(app.build(api), api.is_stopping, _current(api))
        server = Server(
            clients, where.socket, where.state / "runtime" / "aitbcd.sock", is_for_all=api.is_shared
        )
        # Modules and settings stay: a full collection need not walk through them each time.
        gc.collect()
        gc.freeze()
        await server.listen(handed.unix)
        await _listen_tcp(server, chosen, handed, where.config)
        api.url = _url(server, encrypted)
        guard = asyncio.create_task(server.guard(watches))
        # Whatever ends this: it must not go on with watches that are closed.
        stack.callback(guard.cancel)

        def apply() -> None:
            engine.on_settings()
            telling.keep_looking()

        reloading = Reloading(
            where.config,
            chosen,
            watches,
            notifier=notifier,
            apply=apply,
            renew=lambda: _renew(api, chosen),
            describe=lambda: _status(engine.active_count),
            say=_say,
        )
        loop.add_signal_handler(signal.SIGHUP, reloading.tell)
        reloads = asyncio.create_task(reloading.run())
        _greet(server, where, engine, found, is_encrypted=encrypted is not None)
        notifier.ready(_status(engine.active_count))
        stack.callback(notifier.close)
        notifier.keep_watched(lambda: _status(engine.active_count))
        await stopping.wait()
        notifier.stopping(f"stops; {_jobs(engine.active_count)} left running")
        guard.cancel()
        reloads.cancel()
        api.stop()
        await server.stop(_STOP_GRACE_S)
        _say_goodbye(engine.active_count)


async def _listen_tcp(server: Server, chosen: Settings, handed: Handed, config: Path) -> None:
    """Serve TCP if it is wanted; a taken port is said and costs only TCP."""
    address = chosen.server.address
    for sock in handed.tcp:
        if address and _is_meant(sock, address):
            await server.serve_tcp(sock)
            continue
        await server.refuse_tcp(sock)
        _say(
            f"nobody is served on {shown_address(sock)}, which systemd holds for this daemon:"
            f' [server] tcp is "{chosen.server.tcp}". Change one of them, or close it:'
            " systemctl mask --now aitbcd-tcp.socket"
        )
    if address is None or server.tcp:
        return
    try:
        await server.listen_tcp(address)
    except OSError as problem:
        _say(
            f"no TCP: cannot listen on {chosen.server.tcp}: {problem.strerror};"
            f" the socket serves. Choose another port with [server] tcp in {config}"
        )
        return
    if handed.unix and not handed.tcp:
        _say(
            f"systemd does not hold {server.tcp}, so that others can take it while this daemon is"
            " away: systemctl status aitbcd-tcp.socket"
        )


def _is_meant(sock: socket.socket, address: tuple[str, int]) -> bool:
    """Tell whether a socket that systemd holds is what ``server.tcp`` says.

    Of loopback and of all addresses systemd holds one for IPv4 and one for IPv6.
    """
    host, port = sock.getsockname()[:2]
    held = ipaddress.ip_address(host)
    if port != address[1] or held.is_loopback or settings.is_loopback(address[0]):
        return port == address[1] and held.is_loopback and settings.is_loopback(address[0])
    wanted = ipaddress.ip_address(address[0])
    return held == wanted or (held.is_unspecified and wanted.is_unspecified)


def _url(server: Server, encrypted: Certificate | None) -> str | None:
    """Return where others find what is served over TCP, if that can be told."""
    if server.tcp is None:
        return None
    host, _, port = server.tcp.rpartition(":")
    if encrypted is not None and not encrypted.is_for(host):
        host = next((name for name in encrypted.names if not name.startswith("*")), host)
    if host in ("0.0.0.0", "[::]"):
        return None
    return f"{'https' if encrypted else 'http'}://{host}:{port}"


def _current(api: Api) -> Callable[[], Certificate] | None:
    """Return what gives the certificate that counts now; None where nothing is encrypted."""

    def current() -> Certificate:
        assert api.certificate is not None
        return api.certificate

    return current if api.certificate is not None else None


def _renew(api: Api, chosen: Settings) -> None:
    api.certificate = _certificate(chosen)


def _greet(
    server: Server, where: Paths, engine: Engine, found: Inventory, *, is_encrypted: bool
) -> None:
    whole = engine.whole
    cores = f"{whole.cpus} CPU core{'' if whole.cpus == 1 else 's'}"
    _say(f"aitbcd {__version__} serves, pid {os.getpid()}")
    _say(f"  socket   {server.path}")
    if server.tcp:
        _say(f"  http     {'https' if is_encrypted else 'http'}://{server.tcp}")
    _say(f"  state    {where.state}")
    _say(f"  devices  {cores}, {format_size(whole.memory)} of memory, {inventory(found.gpus)}")
    if found.problem:
        _say(f"           ({found.problem})")
    if engine.active_count:
        _say(f"  found    {_jobs(engine.active_count)} that had been started before")


def _say_goodbye(active: int) -> None:
    if active:
        go = "goes" if active == 1 else "go"
        _say(f"aitbcd stops; {_jobs(active)} {go} on running and will be found at the next start")
    else:
        _say("aitbcd stops")


def _status(active: int) -> str:
    return f"serves; {_jobs(active)} under way"


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # Nobody reads it, or the disk that it goes to is full: that is no reason not to serve.
        pass


if __name__ == "__main__":
    main()

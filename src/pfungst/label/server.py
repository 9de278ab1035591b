"""Start the labelling app and print everybody's link."""

from __future__ import annotations

import importlib
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pfungst.errors import InputError
from pfungst.label.app import create_app
from pfungst.label.security import Keys
from pfungst.label.study import ADJUDICATOR, Study


@dataclass(frozen=True)
class Links:
    """The address of every labeller and of the coordinator."""

    labellers: dict[str, str]
    coordinator: str


def links(study: Study, base: str) -> Links:
    """Everybody's link; the same after every restart.

    Args:
        study: the study that is served.
        base: scheme, host and port, such as ``http://127.0.0.1:8765``.
    """
    keys = Keys(study.store.secret)
    return Links(
        {name: f"{base}/enter/{keys.token(name)}" for name in study.labellers},
        f"{base}/enter/{keys.token(ADJUDICATOR)}",
    )


def serve(
    folder: str | os.PathLike[str],
    labellers: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8765,
    names: Sequence[str] = (),
    echo: Callable[[str], None] = print,
) -> None:
    """Serve a task folder until interrupted.

    Args:
        folder: the task folder; answers go to its ``labels.sqlite``.
        labellers: names of the people who judge independently; the same names resume.
        host: address to listen on; anything but a loopback address lets other machines connect.
        port: TCP port, 0 for any free one.
        names: host names under which browsers reach the server, needed where it listens on all addresses.
        echo: prints one line.

    Raises:
        DataError: the task or the answers file cannot be used.
        InputError: a wrong name, or an address or port that cannot be used.
    """
    import uvicorn

    study = Study(folder, labellers)
    sock = _listen(host, port)
    port = sock.getsockname()[1]
    known = _names(host, names)
    hosts = {f"{name}:{port}" for name in known} | (set(known) if port == 80 else set())
    app = create_app(study, hosts)
    shown = links(study, f"http://{known[0]}:{port}")
    echo(f"{study.task.title}: {len(study.items)} {study.task.kind}, answers in {study.store.path}")
    width = max(len("coordinator"), *(len(name) for name in study.labellers))
    for name, link in shown.labellers.items():
        done = len(study.progress(name).answers)
        echo(f"  {name:{width}}  {link}" + (f"  ({done} answered)" if done else ""))
    if len(study.labellers) > 1:
        echo(f"  {'coordinator':{width}}  {shown.coordinator}  (agreement, disagreements, export)")
    for name in study.left_out:
        count = len(study.progress(name).answers)
        echo(
            f"  {name} answered {count} items earlier but is not named now: these answers stay stored and "
            "do not count"
        )
    if not _loopback(host):
        open_to = "  The server listens to the network, without encryption: whoever has a link can answer in "
        echo(f"{open_to}that name.")
    stop = "Stop with Ctrl+C; the same command resumes."
    echo(f"Every answer is on the disk before the next screen shows. {stop}")
    # The first Parquet export should not wait for a large library.
    threading.Thread(target=importlib.import_module, args=("pyarrow.parquet",), daemon=True).start()
    from pfungst.label.connection import Connection

    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=30,
        limit_concurrency=1000,
        timeout_graceful_shutdown=3,
        proxy_headers=False,
        ws="none",
    )
    try:
        uvicorn.Server(config).run(sockets=[sock])
    except KeyboardInterrupt:
        pass
    finally:
        sock.close()
        study.close()


def _listen(host: str, port: int) -> socket.socket:
    remedy = "give another --host or --port"
    if not 0 <= port < 65536:  # some systems take the remainder, and listen somewhere else
        raise InputError(f"cannot listen on port {port}: ports go from 0 to 65535", remedy)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"cannot listen on {host} port {port}: {error}", remedy) from None
    sock = socket.socket(family, kind, protocol)
    try:
        for option in (socket.SO_REUSEADDR, socket.SO_KEEPALIVE):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind(address)
        sock.listen(256)
    except (OSError, OverflowError) as error:
        sock.close()
        raise InputError(f"cannot listen on {host} port {port}: {error}", remedy) from None
    return sock


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names(host: str, names: Sequence[str]) -> list[str]:
    """Host names that count as ours, the one for the links first."""
    if _loopback(host):
        own = [f"[{host}]" if ":" in host else host, "127.0.0.1", "localhost", "[::1]"]
    elif host in ("0.0.0.0", "::"):
        machine = socket.gethostname()
        try:
            found = {str(a[4][0]) for a in socket.getaddrinfo(machine, None)}
        except OSError:
            found = set()
        own = [machine, *sorted(f"[{a}]" if ":" in a else a for a in found), "127.0.0.1", "localhost"]
    else:
        own = [f"[{host}]" if ":" in host else host]
    return list(dict.fromkeys(name.lower() for name in [*names, *own]))

"""Listening where this node listened the last time, so that invites and peers that know it still find it."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from p2pnode.home import write_atomically

FREE_SECONDS: Final = 3.0  # for the daemon of a killed node to let go of its port
_ANY_PORT: Final = re.compile(r"/ip[46]/([^/]+)/tcp/0")


def same_port(listen: Sequence[str], file: Path) -> tuple[str, ...]:
    """`listen`, with the port in `file` where any TCP port would do, if it is free. Blocks for FREE_SECONDS at most."""
    try:
        port = int(file.read_text("ascii"))
    except (OSError, ValueError):
        return tuple(listen)
    hosts = [match[1] for address in listen if (match := _ANY_PORT.fullmatch(address))]
    deadline = time.monotonic() + FREE_SECONDS
    while not all(_free(host, port) for host in hosts):
        if time.monotonic() > deadline:
            return tuple(listen)
        time.sleep(0.1)
    return tuple(f"{address[:-1]}{port}" if _ANY_PORT.fullmatch(address) else address for address in listen)


def remember_port(addresses: Sequence[str], file: Path) -> None:
    """Write down the port of the addresses under which we can be reached. StorageError."""
    for address in addresses:
        if (match := re.match(r"/ip[46]/[^/]+/tcp/([0-9]{1,5})/", address)) is not None:
            write_atomically(file, match[1].encode() + b"\n")
            return


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError, OverflowError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True
    return False

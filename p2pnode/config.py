"""This machine's own choices: where things are, what to join, what to give, when to leave. Never agreed with peers.

The parsers take what a person typed and return a value, or raise UsageError with one line that says what was found
and what is allowed. Nothing here reads the environment: the command line does.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from blake3 import blake3

from p2pnode.errors import UsageError
from p2pnode.identity import PeerId
from p2pnode.invite import Invite

DEFAULT_TASK: Final = "digits"
DEFAULT_LISTEN: Final = ("/ip4/0.0.0.0/tcp/0",)
MAX_SHARES: Final = 100_000
MAX_THREADS: Final = 1024
MAX_NAME: Final = 100
MAX_DURATION: Final = 366 * 86_400.0
SCREENS: Final = ("auto", "full", "plain", "json")

Operator = Literal[">=", "<="]
ScreenKind = Literal["auto", "full", "plain", "json"]


@dataclass(frozen=True)
class Share:
    """The part of a data set that this node holds: part `number` (1 .. count) of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def of_peer(cls, peer: PeerId, count: int) -> Share:
        """The share of `count` that falls to a peer by its id, evenly spread; two peers may fall on the same one."""
        drawn = int.from_bytes(blake3(b"p2pnode/share/1\0" + peer.key).digest(), "big")
        return cls(drawn % count + 1, count)


@dataclass(frozen=True)
class Goal:
    """A measure of the shared model that is good enough, such as accuracy >= 0.95."""

    metric: str
    operator: Operator
    value: float

    def reached(self, found: float | None) -> bool:
        """Whether `found` is good enough; an unknown or non-finite value never is."""
        if found is None or not math.isfinite(found):
            return False
        return found >= self.value if self.operator == ">=" else found <= self.value

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.value:g}"


@dataclass(frozen=True)
class RunChoice:
    """Which run: the invite's; else a new one from a manifest file; else a new one of a task.

    name: the new run's name; when joining, this node's label on its own screen. resume: the first digits of the id of
    a run that this home took part in; "" for the one that it joined last.
    """

    invite: Invite | None = None
    manifest: Path | None = None
    task: str | None = None
    name: str | None = None
    unsafe_no_privacy: bool = False
    resume: str | None = None

    def __post_init__(self) -> None:
        if self.resume is not None:
            for option, given in (
                ("an invite", self.invite is not None),
                ("--task", self.task is not None),
                ("--manifest", self.manifest is not None),
                ("--unsafe-no-privacy", self.unsafe_no_privacy),
            ):
                if given:
                    raise UsageError(f"--resume and {option} were both given: leave out one of the two")
        if self.invite is not None:
            for option, given in (
                ("--task", self.task is not None),
                ("--manifest", self.manifest is not None),
                ("--unsafe-no-privacy", self.unsafe_no_privacy),
            ):
                if given:
                    raise UsageError(
                        f"{option} is for founding a run, and an invite was given: leave out one of the two"
                    )
        if self.manifest is not None:
            for option, given in (
                ("--task", self.task is not None),
                ("--name", self.name is not None),
            ):
                if given:
                    raise UsageError(f"{option} and --manifest were both given: the manifest says it already")


@dataclass(frozen=True)
class NetworkChoice:
    """Where to listen, and which addresses to announce instead of those that are found (multiaddrs)."""

    listen: tuple[str, ...] = DEFAULT_LISTEN
    announce: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkChoice:
    """What this machine gives. share None: derived from the peer id. threads None: torch's default."""

    data_dir: Path | None = None
    share: Share | None = None
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class LeaveChoice:
    """When to leave by itself; all None: when the run ends, or when told to."""

    rounds: int | None = None  # rounds committed since this node joined
    until: Goal | None = None
    for_seconds: float | None = None


@dataclass(frozen=True)
class NodeConfig:
    """All that `p2pnode join` was told."""

    home: Path
    run: RunChoice = field(default_factory=RunChoice)
    network: NetworkChoice = field(default_factory=NetworkChoice)
    work: WorkChoice = field(default_factory=WorkChoice)
    leave: LeaveChoice = field(default_factory=LeaveChoice)
    screen: ScreenKind = "auto"
    debug: bool = False
    launcher: int | None = None  # process id of our parent when we started: the node does not outlive it


def parse_share(text: str) -> Share:
    """`2/4` -> Share(2, 4). 1 <= K <= N <= MAX_SHARES."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
    if match is None:
        raise UsageError(f"found {_quoted(text)}, a share is written K/N, such as 2/4")
    number, count = int(match[1]), int(match[2])
    if not 1 <= count <= MAX_SHARES:
        raise UsageError(f"found {_quoted(text)}, N must be from 1 to {MAX_SHARES}")
    if not 1 <= number <= count:
        raise UsageError(f"found {_quoted(text)}, K must be from 1 to N")
    return Share(number, count)


def parse_goal(text: str) -> Goal:
    """`accuracy>=0.95` or `loss<=0.1` -> Goal."""
    match = re.fullmatch(r"\s*([a-z][a-z0-9_]{0,63})\s*(>=|<=)\s*([0-9.eE+-]{1,32})\s*", text)
    if match is None:
        raise UsageError(f"found {_quoted(text)}, a goal is written METRIC>=X, such as accuracy>=0.95 (in quotes)")
    try:
        value = float(match[3])
    except ValueError:
        raise UsageError(f"found {_quoted(text)}, {_quoted(match[3])} is not a number") from None
    if not math.isfinite(value):
        raise UsageError(f"found {_quoted(text)}, the number is too large")
    return Goal(match[1], ">=" if match[2] == ">=" else "<=", value)


_UNITS: Final = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}


def parse_duration(text: str) -> float:
    """`90`, `90s`, `10m`, `1h30m`, `2d` -> seconds, above 0 and at most MAX_DURATION."""
    allowed = "a time is written like 90s, 10m, 1h30m or 2d"
    cleaned = text.strip().lower()
    if re.fullmatch(r"([0-9]{1,9}(\.[0-9]{1,6})?[dhms]){1,4}|[0-9]{1,9}(\.[0-9]{1,6})?", cleaned) is None:
        raise UsageError(f"found {_quoted(text)}, {allowed}")
    pieces = re.findall(r"([0-9.]+)([dhms]?)", cleaned)
    units = [unit for _, unit in pieces]
    if sorted(set(units), key="dhms".find) != units:
        raise UsageError(f"found {_quoted(text)}, {allowed}, each unit once and the largest first")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in pieces)
    if not 0 < seconds <= MAX_DURATION:
        raise UsageError(f"found {_quoted(text)}, must be above 0 and at most {MAX_DURATION / 86_400:.0f}d")
    return seconds


def parse_count(text: str, most: int) -> int:
    """A whole number from 1 to `most`."""
    if re.fullmatch(r"\s*[0-9]{1,12}\s*", text) is None or not 1 <= int(text) <= most:
        raise UsageError(f"found {_quoted(text)}, must be a whole number from 1 to {most}")
    return int(text)


def parse_rounds(text: str) -> int:
    """How many committed rounds to stay."""
    return parse_count(text, 100_000_000)


def parse_threads(text: str) -> int:
    """How many threads the arithmetic may use."""
    return parse_count(text, MAX_THREADS)


def parse_device(text: str) -> str:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Whether this machine has it is found out when torch is loaded."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", text.strip().lower()) is None:
        raise UsageError(f"found {_quoted(text)}, must be auto, cpu, cuda, cuda:N or mps")
    return text.strip().lower()


def parse_run_prefix(text: str) -> str:
    """The first digits of a run id, in hexadecimal; "" stands for the run that was joined last."""
    if re.fullmatch(r"[0-9a-f]{0,64}", text.strip().lower()) is None:
        raise UsageError(f"found {_quoted(text)}, a run's id has hexadecimal digits, and its first ones are enough")
    return text.strip().lower()


def parse_name(text: str) -> str:
    """A name for people: 1 to MAX_NAME printable characters, spaces at the ends dropped."""
    name = text.strip()
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise UsageError(f"found {_quoted(text)}, must be 1 to {MAX_NAME} printable characters")
    return name


_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")


def parse_listen_address(text: str) -> str:
    """A multiaddr to listen on, such as `/ip4/0.0.0.0/tcp/31337` (port 0: any free one)."""
    return _parse_address(text, "/ip4/0.0.0.0/tcp/31337", ("ip4", "ip6"))


def parse_announce_address(text: str) -> str:
    """A multiaddr under which others reach this node, such as `/ip4/203.0.113.7/tcp/31337`; port 0 is refused."""
    address = _parse_address(text, "/ip4/203.0.113.7/tcp/31337", ("ip4", "ip6", "dns", "dns4", "dns6"))
    if address.split("/")[4] == "0":
        raise UsageError(f"found {_quoted(text)}, the port of an announced address can't be 0")
    return address


def _parse_address(text: str, example: str, hosts: tuple[str, ...]) -> str:
    import ipaddress

    parts = text.strip().split("/")
    allowed = f"an address is a multiaddr such as {example}"
    if len(parts) < 5 or parts[0] or len(text) > 256 or not text.isascii() or not text.strip().isprintable():
        raise UsageError(f"found {_quoted(text)}, {allowed}")
    _, kind, host, protocol, port, *rest = parts
    if kind not in hosts or protocol not in ("tcp", "udp") or not host:
        raise UsageError(f"found {_quoted(text)}, {allowed}")
    if kind in ("ip4", "ip6"):
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise UsageError(f"found {_quoted(text)}, {_quoted(host)} is not an IP address") from None
        if address.version != int(kind[2]):
            raise UsageError(f"found {_quoted(text)}, {_quoted(host)} does not belong after /{kind}")
    if _PORT.fullmatch(port) is None or int(port) > 65_535:
        raise UsageError(f"found {_quoted(text)}, the port must be from 0 to 65535")
    if "" in rest:
        raise UsageError(f"found {_quoted(text)}, {allowed}")
    return text.strip()


def _quoted(text: str) -> str:
    """What was found, safe and short enough for one line."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return f'"{shown}"' if len(shown) <= 60 else f'"{shown[:57]}..."'

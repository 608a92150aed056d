"""Multiaddrs as text: taking them apart, and which to offer first."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from p2pnode.identity import PeerId


def split(address: str) -> tuple[str, PeerId]:
    """A multiaddr that ends in `/p2p/<peer id>`: what is before that, and the peer. ValueError if it does not."""
    before, separator, text = address.strip().rpartition("/p2p/")
    if not separator or not before.startswith("/"):
        raise ValueError(f"{address!r} does not end in /p2p/<peer id>")
    try:
        return before, PeerId.from_text(text.rstrip("/"))
    except ValueError:
        raise ValueError(f"{address!r} does not name an Ed25519 peer id") from None


def by_peer(addresses: Iterable[str]) -> dict[PeerId, list[str]]:
    """Addresses (without `/p2p/...`) by peer, in order. ValueError for the first that can't be used."""
    grouped: dict[PeerId, list[str]] = {}
    for address in addresses:
        before, peer = split(address)
        known = grouped.setdefault(peer, [])
        if before not in known:
            known.append(before)
    return grouped


def cleaned(addresses: Iterable[str]) -> list[str]:
    """The addresses without blanks and trailing slashes."""
    return [f"{before}/p2p/{peer}" for before, peer in map(split, addresses)]


def settled(listen: Iterable[str], found: Sequence[str]) -> list[str]:
    """`listen` with the ports that were got in place of 0, as far as `found` (what we listen on now) shows them."""
    return [_settle(address, found) for address in listen]


def _settle(address: str, found: Sequence[str]) -> str:
    asked = address.split("/")
    if len(asked) < 5 or asked[4] != "0":
        return address
    candidates = []
    for other in found:
        got = other.split("/")
        if len(got) == len(asked) and (got[1], got[3], got[5:]) == (asked[1], asked[3], asked[5:]):
            # Of all interfaces the inner ones show the port: outside, a router's mapping may show another.
            candidates += [(got[2] != asked[2], -_reach(other), got[4])]
    exact = asked[2] not in ("0.0.0.0", "::")
    for elsewhere, reach, port in sorted(candidates):
        if not elsewhere or (not exact and reach < 0):
            return "/".join([*asked[:4], port, *asked[5:]])
    return address


def order(addresses: Iterable[str]) -> Sequence[str]:
    """Most reachable first: public, local network, through a relay, link-local, loopback."""
    return sorted(dict.fromkeys(addresses), key=_reach)


def _reach(address: str) -> int:
    parts = address.split("/")
    if "p2p-circuit" in parts:
        return 2
    if len(parts) < 3:
        return 3
    if parts[1] not in ("ip4", "ip6"):
        return 0  # a name: somebody announced it on purpose
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return 3
    if ip.is_loopback:
        return 4
    if ip.is_link_local:
        return 3
    return 0 if ip.is_global else 1

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

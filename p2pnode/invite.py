"""The invite: one line that a person pastes into a chat, and all that a newcomer has to be told.

    p2pnode1:<base32 of: length of the body (2 bytes), body (protobuf InviteBody), checksum (5 bytes)>

Base32 in lower case, because chats read `_`, `*` and `~` as formatting, a double click selects all of it, case does
not matter, and in upper case it fits a QR code's dense alphanumeric mode. The length tells a cut-off paste from a
mistyped one. The checksum guards against accidents only: what an invite says is as trustworthy as who sent it.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from blake3 import blake3
from google.protobuf.message import DecodeError

from p2pnode.errors import InviteError
from p2pnode.identity import KEY_BYTES, PeerId
from p2pnode.wire.invite_pb2 import Bootstrap, InviteBody

PREFIX: Final = "p2pnode1:"
MAX_ADDRESSES: Final = 8
MAX_ADDRESS_CHARS: Final = 256
MAX_ROUND: Final = 2**63 - 1
MAX_PASTED_CHARS: Final = 16_384  # of what is looked at; the longest invite has less than 5,000
_DIGEST_BYTES: Final = 32
_LENGTH_BYTES: Final = 2
_CHECKSUM_BYTES: Final = 5
_CHECKSUM_DOMAIN: Final = b"p2pnode.invite.1:"
# What chats, mail programs and terminals put around or into a line.
_WRAPPING: Final = "\"'`<>()[]{}*_~.,;|“”„‘’‚«»‹›"
_SCHEME: Final = re.compile(r"p2pnode([0-9]{1,3}):", re.IGNORECASE)


@dataclass(frozen=True)
class Invite:
    """What a newcomer needs: which run, whose, a state to trust as a start, and whom to call.

    run, state_digest, roster_digest: 32 bytes. round: of that state, from 0. addresses: 1 to MAX_ADDRESSES multiaddrs
    that end in `/p2p/<peer id>`, each of at most MAX_ADDRESS_CHARS ASCII characters. InviteError if it is otherwise.
    """

    run: bytes
    author: PeerId
    round: int
    state_digest: bytes
    roster_digest: bytes
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("run", "state_digest", "roster_digest"):
            if len(getattr(self, name)) != _DIGEST_BYTES:
                raise InviteError(f"an invite's {name} must be {_DIGEST_BYTES} bytes")
        if not 0 <= self.round <= MAX_ROUND:
            raise InviteError("an invite's round must not be negative")
        if not 1 <= len(self.addresses) <= MAX_ADDRESSES:
            raise InviteError(f"an invite holds 1 to {MAX_ADDRESSES} addresses, not {len(self.addresses)}")
        for address in self.addresses:
            _split_address(address)

    @property
    def run_id(self) -> str:
        """`run` in hexadecimal."""
        return self.run.hex()

    @property
    def bootstraps(self) -> tuple[PeerId, ...]:
        """The peers that the addresses lead to, in their order, each once."""
        return tuple(dict.fromkeys(_split_address(address)[1] for address in self.addresses))

    @cached_property
    def text(self) -> str:
        """The line to paste."""
        body = self._body().SerializeToString(deterministic=True)
        framed = len(body).to_bytes(_LENGTH_BYTES, "big") + body + _checksum(body)
        return PREFIX + base64.b32encode(framed).decode("ascii").rstrip("=").lower()

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, pasted: str) -> Invite:
        """The invite in `pasted`, which may have whitespace, line breaks or quotes in and around it.

        Raises InviteError, with its own message for: not an invite, of a newer version, cut off, too long, mistyped.
        """
        code = _code_of(pasted)
        raw = _decode_base32(code[: len(code) // 8 * 8])  # whole groups suffice to read the length
        if len(raw) < _LENGTH_BYTES:
            raise InviteError(f"the invite is cut off after {len(code)} characters: copy the whole line")
        expected = _characters(_LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES], "big") + _CHECKSUM_BYTES)
        if len(code) < expected:
            raise InviteError(
                f"the invite is cut off: {len(code)} of {expected} characters are there; copy the whole line"
            )
        if len(code) > expected:
            raise InviteError(f"the invite has {len(code) - expected} characters too many: paste it without other text")
        framed = _decode_base32(code)
        body, checksum = framed[_LENGTH_BYTES:-_CHECKSUM_BYTES], framed[-_CHECKSUM_BYTES:]
        if checksum != _checksum(body):
            raise InviteError("the invite is damaged (a character was changed on the way): copy it again")
        invite = cls._from_body(body)
        if invite.text != PREFIX + code:
            raise InviteError("the invite is not in its canonical form: ask for a new one")
        return invite

    def _body(self) -> InviteBody:
        bootstraps: list[Bootstrap] = []
        for address in self.addresses:
            host, peer = _split_address(address)
            if not bootstraps or bootstraps[-1].peer != peer.key:
                bootstraps.append(Bootstrap(peer=peer.key))
            bootstraps[-1].addresses.append(host)
        return InviteBody(
            run=self.run,
            author=self.author.key,
            round=self.round,
            state_digest=self.state_digest,
            roster_digest=self.roster_digest,
            bootstraps=bootstraps,
        )

    @classmethod
    def _from_body(cls, raw: bytes) -> Invite:
        try:
            body = InviteBody.FromString(raw)
        except DecodeError:
            raise InviteError("the invite's content can't be read: ask for a new one") from None
        peers = [body.author, *(bootstrap.peer for bootstrap in body.bootstraps)]
        if len(body.bootstraps) > MAX_ADDRESSES or any(len(peer) != KEY_BYTES for peer in peers):
            raise InviteError("the invite's content can't be read: ask for a new one")
        return cls(
            run=body.run,
            author=PeerId(body.author),
            round=body.round,
            state_digest=body.state_digest,
            roster_digest=body.roster_digest,
            addresses=tuple(
                f"{address}/p2p/{PeerId(bootstrap.peer)}"
                for bootstrap in body.bootstraps
                for address in bootstrap.addresses
            ),
        )


def _split_address(address: str) -> tuple[str, PeerId]:
    """`/ip4/192.0.2.1/tcp/4001/p2p/12D3...` -> (`/ip4/192.0.2.1/tcp/4001`, peer)."""
    host, separator, peer = address.rpartition("/p2p/")
    if len(address) > MAX_ADDRESS_CHARS or not separator or re.fullmatch(r"(/[!-.0-~]+)+", host) is None:
        raise InviteError(f"not an address with a peer id at its end: {address[:80]!a}")
    try:
        return host, PeerId.from_text(peer)
    except ValueError:
        raise InviteError(f"not the id of a p2pnode peer: {peer[:80]!a}") from None


def _code_of(pasted: str) -> str:
    """The base32 characters, in lower case, of what was pasted."""
    shown = "".join(c for c in pasted[:MAX_PASTED_CHARS] if not c.isspace() and unicodedata.category(c) != "Cf")
    match = _SCHEME.search(shown)
    if match is None:
        raise InviteError(f"not an invite: an invite is one line that begins with {PREFIX}")
    if match[0].lower() != PREFIX:
        raise InviteError(
            f"this invite is of version {match[1]}, and this p2pnode reads version 1: install the matching p2pnode"
        )
    code = shown[match.end() :].strip(_WRAPPING).lower()
    wrong = re.search(r"[^a-z2-7]", code)
    if wrong is not None:
        raise InviteError(f"the invite is damaged ({wrong[0]!a} can't be part of one): copy it again")
    return code


def _characters(count: int) -> int:
    """Base32 characters, without padding, for `count` bytes."""
    return (count * 8 + 4) // 5


def _decode_base32(code: str) -> bytes:
    try:
        return base64.b32decode(code.upper() + "=" * (-len(code) % 8))
    except binascii.Error:
        raise InviteError("the invite is damaged (its length can't be right): copy it again") from None


def _checksum(body: bytes) -> bytes:
    return blake3(_CHECKSUM_DOMAIN + body).digest()[:_CHECKSUM_BYTES]

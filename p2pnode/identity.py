"""Who a peer is: one Ed25519 key that is both the libp2p peer id and the signing key.

A libp2p peer id of an Ed25519 key is the identity multihash of the key's protobuf form, so the id *is* the
verification key: nobody needs a directory of keys (libp2p specs, `peer-ids/peer-ids.md`).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pnode.errors import IdentityError, StorageError

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
# multihash "identity", length 36, then protobuf PublicKey{type: Ed25519, data: 32 bytes}
_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")
# protobuf PrivateKey{type: Ed25519, data: 64 bytes}
_PRIVATE_KEY_PREFIX: Final = bytes.fromhex("08011240")
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def _base58_encode(data: bytes) -> str:
    number = int.from_bytes(data, "big")
    digits = ""
    while number:
        number, rest = divmod(number, 58)
        digits = _ALPHABET[rest] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def _base58_decode(text: str) -> bytes:
    number = 0
    for character in text:
        number = number * 58 + _ALPHABET.index(character)
    body = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return b"\0" * (len(text) - len(text.lstrip("1"))) + body


@lru_cache(maxsize=1024)
def _verifier(key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(key)


@dataclass(frozen=True, order=True)
class PeerId:
    """A peer, named by its Ed25519 public key (32 bytes). Orders by those bytes; prints as libp2p does."""

    key: bytes

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"a peer id has {KEY_BYTES} key bytes, not {len(self.key)}")

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def text(self) -> str:
        """The base58 form that libp2p and people use: `12D3KooW...`."""
        return _base58_encode(_PEER_ID_PREFIX + self.key)

    @property
    def short(self) -> str:
        """The last eight characters: enough for a screen, never for a decision."""
        return self.text[-8:]

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"PeerId({self.text})"

    def to_bytes(self) -> bytes:
        """The binary libp2p peer id, 38 bytes."""
        return _PEER_ID_PREFIX + self.key

    @classmethod
    def from_bytes(cls, data: bytes) -> PeerId:
        """From a binary libp2p peer id. ValueError if it is not that of an Ed25519 key."""
        if len(data) != len(_PEER_ID_PREFIX) + KEY_BYTES or not data.startswith(_PEER_ID_PREFIX):
            raise ValueError("not the peer id of an Ed25519 key")
        return cls(data[len(_PEER_ID_PREFIX) :])

    @classmethod
    def from_text(cls, text: str) -> PeerId:
        """From the base58 form. ValueError if it is not that of an Ed25519 key."""
        if len(text) > 64:
            raise ValueError("too long for a peer id")
        return cls.from_bytes(_base58_decode(text))

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` (64 bytes) over `data` was made with this peer's key."""
        try:
            _verifier(self.key).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True


class PeerIdentity:
    """The private side: signs, and gives libp2p its key file. Never leaves this machine but by `export`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.peer_id = PeerId(raw)

    @classmethod
    def generate(cls) -> PeerIdentity:
        """A new identity from the system's secure random source."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> PeerIdentity:
        """From a 32-byte seed. For key files and test vectors: a guessable seed is a public key pair."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature over `data`; callers sign digests with a domain, see `envelope`."""
        return self._key.sign(data)

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes."""
        return self._key.private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )

    def to_libp2p(self) -> bytes:
        """The key file that libp2p's daemon reads: protobuf PrivateKey{Ed25519, seed + public key}."""
        return _PRIVATE_KEY_PREFIX + self.seed + self.peer_id.key

    @classmethod
    def load(cls, path: Path) -> PeerIdentity:
        """Read a key file written by `save`.

        Raises IdentityError when the file is missing, damaged, or readable by others.
        """
        try:
            if os.name == "posix" and path.stat().st_mode & 0o077:
                raise IdentityError(f"{path}: others can read this private key; run: chmod 600 {path}")
            data = path.read_bytes()
        except FileNotFoundError:
            raise IdentityError(f"{path}: no identity here yet; `p2pnode identity show` makes one") from None
        except OSError as error:
            raise IdentityError(f"{path}: can't be read ({error.strerror})") from None
        body = data.removeprefix(_PRIVATE_KEY_PREFIX)
        if len(data) != len(_PRIVATE_KEY_PREFIX) + 2 * KEY_BYTES or len(body) != 2 * KEY_BYTES:
            raise IdentityError(f"{path}: not an Ed25519 libp2p key; move it away to get a new identity")
        identity = cls.from_seed(body[:KEY_BYTES])
        if identity.peer_id.key != body[KEY_BYTES:]:
            raise IdentityError(f"{path}: damaged (its two halves do not belong together); restore a backup")
        return identity

    def save(self, path: Path) -> None:
        """Write the key file with mode 0600, whole or not at all, never over an existing one (StorageError)."""
        temporary = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path.parent}: can't be used as a home ({error.strerror})") from None
        try:
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.to_libp2p())
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike rename, fails if `path` exists
        except FileExistsError:
            raise StorageError(f"{path}: there is an identity already") from None
        except OSError as error:
            raise StorageError(f"{path}: can't be written ({error.strerror})") from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    @classmethod
    def load_or_create(cls, path: Path) -> PeerIdentity:
        """The identity in `path`; a new one, saved there, if there is none."""
        if not path.exists():
            cls.generate().save(path)
        return cls.load(path)

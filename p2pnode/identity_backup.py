"""An identity as text that its owner may keep anywhere: encrypted with a passphrase.

    p2pnode identity backup 1
    peer: 12D3KooW...
    kdf: scrypt 131072 8 1 <salt, base64>
    box: <nonce and ChaCha20-Poly1305 of the 32-byte seed, base64>
    check: <first 8 hexadecimal digits of BLAKE3 over the lines above>

The lines before `box` are authenticated with it. The check tells a damaged file from a wrong passphrase.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from p2pnode.errors import IdentityError, StorageError, UsageError
from p2pnode.identity import KEY_BYTES, PeerId, PeerIdentity

TITLE: Final = "p2pnode identity backup 1"
MIN_PASSPHRASE: Final = 8
MAX_BACKUP_BYTES: Final = 4096
# About 0.3 s and 128 MiB for each guess (RFC 7914's N, r, p).
SCRYPT_N: Final = 1 << 17
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
# The most that a backup may ask of the machine that reads it: 1 GiB.
MAX_SCRYPT_N: Final = 1 << 20
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16


class WrongPassphrase(IdentityError):
    """The backup is whole, and this passphrase does not open it."""


def export_identity(
    identity: PeerIdentity, passphrase: str, *, random: Callable[[int], bytes] = os.urandom, n: int = SCRYPT_N
) -> str:
    """The backup's text. UsageError if the passphrase has fewer than MIN_PASSPHRASE characters."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise UsageError(f"the passphrase has {len(passphrase)} characters, must have at least {MIN_PASSPHRASE}")
    salt, nonce = random(_SALT_BYTES), random(_NONCE_BYTES)
    head = f"{TITLE}\npeer: {identity.peer_id}\nkdf: scrypt {n} {SCRYPT_R} {SCRYPT_P} {_text(salt)}\n"
    key = _derive(passphrase, salt, n, SCRYPT_R, SCRYPT_P)
    body = f"{head}box: {_text(nonce + ChaCha20Poly1305(key).encrypt(nonce, identity.seed, head.encode()))}\n"
    return f"{body}check: {_check(body)}\n"


def import_identity(text: str, passphrase: str) -> PeerIdentity:
    """The identity in a backup. Raises WrongPassphrase; IdentityError if the text is damaged or no backup."""
    peer, parameters, salt, head, box = _parse(text)
    key = _derive(passphrase, salt, *parameters)
    try:
        seed = ChaCha20Poly1305(key).decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], head.encode())
    except InvalidTag:
        raise WrongPassphrase("wrong passphrase for this backup") from None
    identity = PeerIdentity.from_seed(seed)
    if identity.peer_id != peer:
        raise IdentityError("the backup holds another key than the peer it names: do not use it")
    return identity


def peer_of_backup(text: str) -> PeerId:
    """Whose backup it is, without the passphrase. IdentityError if the text is damaged or no backup."""
    return _parse(text)[0]


def _parse(text: str) -> tuple[PeerId, tuple[int, int, int], bytes, str, bytes]:
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(text) > MAX_BACKUP_BYTES or not lines or not lines[0].startswith("p2pnode identity backup"):
        raise IdentityError("not a backup of an identity (`p2pnode identity export` writes one)")
    if lines[0] != TITLE:
        raise IdentityError(f'this backup is of another version ("{lines[0][:60]}"): use the p2pnode that wrote it')
    if len(lines) != 5 or lines[4] != "check: " + _check("".join(f"{line}\n" for line in lines[:4])):
        raise IdentityError("the backup is damaged: its check does not match; use another copy")
    peer = re.fullmatch(r"peer: (\S{1,64})", lines[1])
    kdf = re.fullmatch(r"kdf: scrypt ([0-9]{1,8}) ([0-9]{1,2}) ([0-9]{1,2}) (\S+)", lines[2])
    box = re.fullmatch(r"box: (\S+)", lines[3])
    try:
        if peer is None or kdf is None or box is None:
            raise ValueError("a line has another form")
        n, r, p = (int(kdf[index]) for index in (1, 2, 3))
        if not (2 <= n <= MAX_SCRYPT_N and n & (n - 1) == 0 and r == SCRYPT_R and 1 <= p <= 4):
            raise ValueError("unreasonable parameters")
        salt, sealed = base64.b64decode(kdf[4], validate=True), base64.b64decode(box[1], validate=True)
        if len(salt) != _SALT_BYTES or len(sealed) != _NONCE_BYTES + KEY_BYTES + _TAG_BYTES:
            raise ValueError("wrong lengths")
        return PeerId.from_text(peer[1]), (n, r, p), salt, "".join(f"{line}\n" for line in lines[:3]), sealed
    except (ValueError, binascii.Error) as error:
        raise IdentityError(f"the backup can't be read: {error}") from None


def _derive(passphrase: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(passphrase.encode("utf-8"))


def _check(body: str) -> str:
    return blake3(body.encode()).hexdigest()[:8]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def restore_identity(read: Callable[[], PeerIdentity], path: Path, replace: bool) -> Path | None:
    """Put the identity that `read` gives in `path`; where the old one is kept now, if there was one.

    Raises IdentityError, before `read` is called, if there is one and `replace` is false; StorageError.
    """
    if path.exists() and not replace:
        raise IdentityError(f"{path}: there is an identity already; --replace keeps it aside and takes the backup's")
    identity = read()
    if not path.exists():
        identity.save(path)
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise StorageError(f"{path}: can't be moved aside ({error.strerror})") from None
    identity.save(path)
    return aside

"""Backups of an identity."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.errors import IdentityError, UsageError
from p2pnode.identity import PeerIdentity
from p2pnode.identity_backup import (
    WrongPassphrase,
    export_identity,
    import_identity,
    peer_of_backup,
    restore_identity,
)

ALICE = PeerIdentity.from_seed(b"a" * 32)
BOB = PeerIdentity.from_seed(b"b" * 32)
SECRET = "correct horse é"
FAST = 2  # scrypt's N


def test_round_trips() -> None:
    text = export_identity(ALICE, SECRET)
    assert import_identity(text, SECRET).peer_id == ALICE.peer_id
    assert import_identity("\r\n" + text.replace("\n", "\r\n"), SECRET).seed == ALICE.seed
    assert peer_of_backup(text) == ALICE.peer_id
    assert ALICE.seed.hex() not in text
    assert "scrypt 131072 8 1" in text
    assert export_identity(ALICE, SECRET, n=FAST) != export_identity(ALICE, SECRET, n=FAST)


def test_a_wrong_passphrase_is_not_a_damaged_file() -> None:
    text = export_identity(ALICE, SECRET, n=FAST)
    with pytest.raises(WrongPassphrase, match="wrong passphrase"):
        import_identity(text, SECRET + " ")
    with pytest.raises(UsageError, match="at least 8"):
        export_identity(ALICE, "short", n=FAST)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_change_is_noticed(data: st.DataObject) -> None:
    text = export_identity(ALICE, SECRET, n=FAST, random=lambda count: b"\7" * count)
    at = data.draw(st.integers(0, len(text) - 2))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != text[at] and not c.isspace()))
    if text[at].isspace():
        return
    with pytest.raises(IdentityError) as caught:
        import_identity(text[:at] + other + text[at + 1 :], SECRET)
    assert not isinstance(caught.value, WrongPassphrase)


def _resealed(text: str, line: int, new: str) -> str:
    from blake3 import blake3

    lines = text.splitlines()[:4]
    lines[line] = new
    body = "".join(f"{line}\n" for line in lines)
    return f"{body}check: {blake3(body.encode()).hexdigest()[:8]}\n"


@pytest.mark.parametrize(
    ("line", "new", "error"),
    [
        (1, f"peer: {BOB.peer_id}", WrongPassphrase),  # the head is authenticated with the box
        (2, "kdf: scrypt 4194304 8 1 BwcHBwcHBwcHBwcHBwcHBw==", IdentityError),
        (2, "kdf: scrypt 3 8 1 BwcHBwcHBwcHBwcHBwcHBw==", IdentityError),
        (2, "kdf: scrypt 2 64 1 BwcHBwcHBwcHBwcHBwcHBw==", IdentityError),
        (2, "kdf: pbkdf2 2 8 1 BwcHBwcHBwcHBwcHBwcHBw==", IdentityError),
        (3, "box: AAAA", IdentityError),
    ],
)
def test_a_forged_backup_asks_for_nothing_unreasonable(line: int, new: str, error: type[IdentityError]) -> None:
    text = export_identity(ALICE, SECRET, n=FAST, random=lambda count: b"\7" * count)
    with pytest.raises(error) as caught:
        import_identity(_resealed(text, line, new), SECRET)
    assert type(caught.value) is error


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=200) | st.text(max_size=100).map(lambda text: "p2pnode identity backup 1\n" + text))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        import_identity(text, SECRET)


def test_restoring_keeps_the_old_one_aside(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    assert restore_identity(lambda: ALICE, path, replace=False) is None
    with pytest.raises(IdentityError, match="--replace"):
        restore_identity(lambda: pytest.fail("asked for a passphrase"), path, replace=False)
    first = restore_identity(lambda: BOB, path, replace=True)
    second = restore_identity(lambda: ALICE, path, replace=True)
    assert first is not None
    assert second is not None
    assert PeerIdentity.load(first).seed == ALICE.seed
    assert PeerIdentity.load(second).seed == BOB.seed
    assert PeerIdentity.load(path).seed == ALICE.seed

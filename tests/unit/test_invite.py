"""Invites: they survive chats, and every damage has its own words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import InviteError
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.invite import MAX_ADDRESSES, MAX_ROUND, PREFIX, Invite

ALICE = PeerIdentity.from_seed(b"a" * 32).peer_id
BOB = PeerIdentity.from_seed(b"b" * 32).peer_id

peers = st.binary(min_size=32, max_size=32).map(PeerId)
hosts = st.sampled_from(
    [
        "/ip4/192.0.2.1/tcp/4001",
        "/ip6/2001:db8::1/udp/1/quic",
        "/dns4/node.example/tcp/65535",
        f"/ip4/1.2.3.4/tcp/1/p2p/{BOB}/p2p-circuit",
    ]
)
addresses = st.builds(lambda host, peer: f"{host}/p2p/{peer}", hosts, st.one_of(peers, st.just(ALICE)))
digests = st.binary(min_size=32, max_size=32)
invites = st.builds(
    Invite,
    digests,
    peers,
    st.integers(0, MAX_ROUND),
    digests,
    digests,
    st.lists(addresses, min_size=1, max_size=MAX_ADDRESSES).map(tuple),
)


def example(count: int = 2) -> Invite:
    found = tuple(f"/ip4/192.0.2.{n + 1}/tcp/31337/p2p/{ALICE if n % 2 else BOB}" for n in range(count))
    return Invite(b"\1" * 32, ALICE, 7, b"\2" * 32, b"\3" * 32, found)


@settings(max_examples=200, deadline=None)
@given(invites)
def test_round_trips(invite: Invite) -> None:
    assert Invite.parse(invite.text) == invite
    assert Invite.parse(invite.text.upper()) == invite
    assert invite.text.startswith(PREFIX)
    assert invite.text.isascii()
    assert len(invite.text.split()) == 1


@settings(max_examples=300, deadline=None)
@given(invites, st.data())
def test_a_changed_character_never_goes_unnoticed(invite: Invite, data: st.DataObject) -> None:
    text = invite.text
    at = data.draw(st.integers(len(PREFIX), len(text) - 1))
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789-_+/=").filter(lambda c: c != text[at]))
    with pytest.raises(InviteError):
        Invite.parse(text[:at] + other + text[at + 1 :])


@settings(max_examples=200, deadline=None)
@given(invites, st.data())
def test_a_cut_off_or_swapped_paste_never_goes_unnoticed(invite: Invite, data: st.DataObject) -> None:
    text = invite.text
    cut = data.draw(st.integers(len(PREFIX), len(text) - 1))
    with pytest.raises(InviteError, match="cut off"):
        Invite.parse(text[:cut])
    a = data.draw(st.integers(len(PREFIX), len(text) - 2))
    swapped = text[:a] + text[a + 1] + text[a] + text[a + 2 :]
    if swapped != text:
        with pytest.raises(InviteError):
            Invite.parse(swapped)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567").map(lambda text: PREFIX + text))
def test_any_text_ends_in_an_invite_error(text: str) -> None:
    with pytest.raises(InviteError) as caught:
        Invite.parse(text)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: f"  {text}\n",
        lambda text: f'"{text}"',
        lambda text: f"“{text}”",
        lambda text: f"<{text}>.",
        lambda text: f"`{text}`",
        lambda text: "> " + text[:60] + "\r\n" + text[60:200] + "\n   " + text[200:],
        lambda text: text[:30] + "\u200b" + text[30:] + "\u200e",
        lambda text: text[:100] + "\u00a0" + text[100:],
        lambda text: "p2pnode join " + text,
        lambda text: "\ufeff" + text.title(),
    ],
)
def test_reads_through_what_chats_add(wrap: object) -> None:
    invite = example()
    assert Invite.parse(wrap(invite.text)) == invite  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-1], "cut off: "),
        (lambda text: text[:12], "cut off after 3 characters"),
        (lambda text: text + "aa", "2 characters too many"),
        (lambda text: text + text, "too many|damaged"),
        (lambda text: text[:-1] + ("a" if text[-1] != "a" else "b"), "damaged|canonical"),
        (lambda text: text[:80] + "1" + text[81:], "damaged .'1' can't be part of one"),
        (lambda text: text.replace("p2pnode1:", "p2pnode2:"), "version 2"),
        (lambda text: text.replace("p2pnode1:", ""), "not an invite"),
        (lambda _: "", "not an invite"),
        (lambda _: "/ip4/1.2.3.4/tcp/1", "not an invite"),
        (lambda text: "x" * 20_000 + text, "not an invite"),
    ],
)
def test_each_damage_has_its_own_words(change: object, words: str) -> None:
    with pytest.raises(InviteError, match=words):
        Invite.parse(change(example().text))  # type: ignore[operator]


@pytest.mark.parametrize(
    "fields",
    [
        {"run": b"short"},
        {"state_digest": b""},
        {"roster_digest": b"\0" * 33},
        {"round": -1},
        {"round": MAX_ROUND + 1},
        {"addresses": ()},
        {"addresses": (f"/ip4/1.2.3.4/tcp/1/p2p/{ALICE}",) * (MAX_ADDRESSES + 1)},
        {"addresses": ("/ip4/1.2.3.4/tcp/1",)},
        {"addresses": ("/ip4/1.2.3.4/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",)},
        {"addresses": (f"/ip4/{'1' * 300}/tcp/1/p2p/{ALICE}",)},
        {"addresses": (f"/ip4/1.2.3.4\x1b[31m/tcp/1/p2p/{ALICE}",)},
        {"addresses": (f"/p2p/{ALICE}",)},
    ],
)
def test_refuses_what_no_invite_may_hold(fields: dict[str, object]) -> None:
    whole = {
        name: getattr(example(), name)
        for name in ("run", "author", "round", "state_digest", "roster_digest", "addresses")
    }
    with pytest.raises(InviteError):
        Invite(**{**whole, **fields})  # type: ignore[arg-type]


def test_names_its_bootstraps_once_each() -> None:
    assert example(5).bootstraps == (BOB, ALICE)
    assert example().run_id == "01" * 32


def test_fits_a_qr_code() -> None:
    from p2pnode.ui.qr import qr_code

    lines = qr_code(example(8).text).splitlines()
    assert 20 < len(lines) < 100

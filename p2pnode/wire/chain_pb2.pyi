from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RosterEntry(_message.Message):
    __slots__ = ("peer", "accepted", "last_seen", "member")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    accepted: int
    last_seen: int
    member: bool
    def __init__(self, peer: _Optional[bytes] = ..., accepted: _Optional[int] = ..., last_seen: _Optional[int] = ..., member: _Optional[bool] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("entries", "excluded")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[RosterEntry]
    excluded: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, entries: _Optional[_Iterable[_Union[RosterEntry, _Mapping]]] = ..., excluded: _Optional[_Iterable[bytes]] = ...) -> None: ...

class StateHeader(_message.Message):
    __slots__ = ("run", "round", "parent", "roster", "tensors")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    round: int
    parent: bytes
    roster: bytes
    tensors: bytes
    def __init__(self, run: _Optional[bytes] = ..., round: _Optional[int] = ..., parent: _Optional[bytes] = ..., roster: _Optional[bytes] = ..., tensors: _Optional[bytes] = ...) -> None: ...

class ChainRecord(_message.Message):
    __slots__ = ("header", "votes", "roster", "closing", "proposal", "outputs", "reproposal")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    REPROPOSAL_FIELD_NUMBER: _ClassVar[int]
    header: StateHeader
    votes: _containers.RepeatedScalarFieldContainer[bytes]
    roster: Roster
    closing: bytes
    proposal: bytes
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    reproposal: bytes
    def __init__(self, header: _Optional[_Union[StateHeader, _Mapping]] = ..., votes: _Optional[_Iterable[bytes]] = ..., roster: _Optional[_Union[Roster, _Mapping]] = ..., closing: _Optional[bytes] = ..., proposal: _Optional[bytes] = ..., outputs: _Optional[_Iterable[bytes]] = ..., reproposal: _Optional[bytes] = ...) -> None: ...

class CheckpointRecord(_message.Message):
    __slots__ = ("run", "round", "state_digest", "roster", "header")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    round: int
    state_digest: bytes
    roster: Roster
    header: StateHeader
    def __init__(self, run: _Optional[bytes] = ..., round: _Optional[int] = ..., state_digest: _Optional[bytes] = ..., roster: _Optional[_Union[Roster, _Mapping]] = ..., header: _Optional[_Union[StateHeader, _Mapping]] = ...) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Bootstrap(_message.Message):
    __slots__ = ("peer", "addresses")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, peer: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class InviteBody(_message.Message):
    __slots__ = ("run", "author", "round", "state_digest", "roster_digest", "bootstraps")
    RUN_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROSTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BOOTSTRAPS_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    author: bytes
    round: int
    state_digest: bytes
    roster_digest: bytes
    bootstraps: _containers.RepeatedCompositeFieldContainer[Bootstrap]
    def __init__(self, run: _Optional[bytes] = ..., author: _Optional[bytes] = ..., round: _Optional[int] = ..., state_digest: _Optional[bytes] = ..., roster_digest: _Optional[bytes] = ..., bootstraps: _Optional[_Iterable[_Union[Bootstrap, _Mapping]]] = ...) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class DhtRecord(_message.Message):
    __slots__ = ("key", "subkey", "value", "expiration", "issued", "sequence")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SUBKEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXPIRATION_FIELD_NUMBER: _ClassVar[int]
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    subkey: bytes
    value: bytes
    expiration: float
    issued: float
    sequence: int
    def __init__(self, key: _Optional[bytes] = ..., subkey: _Optional[bytes] = ..., value: _Optional[bytes] = ..., expiration: _Optional[float] = ..., issued: _Optional[float] = ..., sequence: _Optional[int] = ...) -> None: ...

class MemberRecord(_message.Message):
    __slots__ = ("addresses", "round", "state_digest")
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    round: int
    state_digest: bytes
    def __init__(self, addresses: _Optional[_Iterable[str]] = ..., round: _Optional[int] = ..., state_digest: _Optional[bytes] = ...) -> None: ...

class CommitRecord(_message.Message):
    __slots__ = ("round", "state_digest")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    round: int
    state_digest: bytes
    def __init__(self, round: _Optional[int] = ..., state_digest: _Optional[bytes] = ...) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("instance", "addresses")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    instance: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, instance: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("instance", "time")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    instance: bytes
    time: float
    def __init__(self, instance: _Optional[bytes] = ..., time: _Optional[float] = ...) -> None: ...

class WhereRequest(_message.Message):
    __slots__ = ("peer",)
    PEER_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    def __init__(self, peer: _Optional[bytes] = ...) -> None: ...

class WhereReply(_message.Message):
    __slots__ = ("addresses",)
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class IdentityRequest(_message.Message):
    __slots__ = ("peer", "instance", "challenge", "forward")
    PEER_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    instance: bytes
    challenge: bytes
    forward: bool
    def __init__(self, peer: _Optional[bytes] = ..., instance: _Optional[bytes] = ..., challenge: _Optional[bytes] = ..., forward: _Optional[bool] = ...) -> None: ...

class IdentityReply(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    def __init__(self, proof: _Optional[bytes] = ...) -> None: ...

class IdentityProof(_message.Message):
    __slots__ = ("run", "instance", "challenge")
    RUN_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    instance: bytes
    challenge: bytes
    def __init__(self, run: _Optional[bytes] = ..., instance: _Optional[bytes] = ..., challenge: _Optional[bytes] = ...) -> None: ...

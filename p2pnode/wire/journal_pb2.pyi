from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PromiseRecord(_message.Message):
    __slots__ = ("round", "parent", "attempt", "left")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    round: int
    parent: bytes
    attempt: int
    left: _containers.RepeatedCompositeFieldContainer[PromiseRecord]
    def __init__(self, round: _Optional[int] = ..., parent: _Optional[bytes] = ..., attempt: _Optional[int] = ..., left: _Optional[_Iterable[_Union[PromiseRecord, _Mapping]]] = ...) -> None: ...

class UpdateRecord(_message.Message):
    __slots__ = ("round", "parent", "steps", "mechanism", "values")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    round: int
    parent: bytes
    steps: int
    mechanism: bytes
    values: bytes
    def __init__(self, round: _Optional[int] = ..., parent: _Optional[bytes] = ..., steps: _Optional[int] = ..., mechanism: _Optional[bytes] = ..., values: _Optional[bytes] = ...) -> None: ...

class LockRecord(_message.Message):
    __slots__ = ("round", "parent", "attempt", "state_digest", "proposal", "closing", "headers", "outputs")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    round: int
    parent: bytes
    attempt: int
    state_digest: bytes
    proposal: bytes
    closing: bytes
    headers: _containers.RepeatedScalarFieldContainer[bytes]
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, round: _Optional[int] = ..., parent: _Optional[bytes] = ..., attempt: _Optional[int] = ..., state_digest: _Optional[bytes] = ..., proposal: _Optional[bytes] = ..., closing: _Optional[bytes] = ..., headers: _Optional[_Iterable[bytes]] = ..., outputs: _Optional[_Iterable[bytes]] = ...) -> None: ...

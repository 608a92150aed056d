from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TwoSignatures(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: bytes
    second: bytes
    def __init__(self, first: _Optional[bytes] = ..., second: _Optional[bytes] = ...) -> None: ...

class EvidenceRow(_message.Message):
    __slots__ = ("commitment", "data", "proof")
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    commitment: bytes
    data: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, commitment: _Optional[bytes] = ..., data: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FalseOutput(_message.Message):
    __slots__ = ("proposal", "header", "index", "data", "proof", "rows")
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    proposal: bytes
    header: bytes
    index: int
    data: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    rows: _containers.RepeatedCompositeFieldContainer[EvidenceRow]
    def __init__(self, proposal: _Optional[bytes] = ..., header: _Optional[bytes] = ..., index: _Optional[int] = ..., data: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ..., rows: _Optional[_Iterable[_Union[EvidenceRow, _Mapping]]] = ...) -> None: ...

class Misbehaviour(_message.Message):
    __slots__ = ("two", "output")
    TWO_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    two: TwoSignatures
    output: FalseOutput
    def __init__(self, two: _Optional[_Union[TwoSignatures, _Mapping]] = ..., output: _Optional[_Union[FalseOutput, _Mapping]] = ...) -> None: ...

class EvidenceFile(_message.Message):
    __slots__ = ("manifest", "misbehaviour")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    MISBEHAVIOUR_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    misbehaviour: bytes
    def __init__(self, manifest: _Optional[bytes] = ..., misbehaviour: _Optional[bytes] = ...) -> None: ...

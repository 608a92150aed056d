from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ManifestRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ManifestReply(_message.Message):
    __slots__ = ("manifest", "signature")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    signature: bytes
    def __init__(self, manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ChainRequest(_message.Message):
    __slots__ = ("from_round", "most")
    FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    from_round: int
    most: int
    def __init__(self, from_round: _Optional[int] = ..., most: _Optional[int] = ...) -> None: ...

class ChainReply(_message.Message):
    __slots__ = ("head", "records")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    head: int
    records: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, head: _Optional[int] = ..., records: _Optional[_Iterable[bytes]] = ...) -> None: ...

class StateRequest(_message.Message):
    __slots__ = ("round", "first_chunk", "most")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    round: int
    first_chunk: int
    most: int
    def __init__(self, round: _Optional[int] = ..., first_chunk: _Optional[int] = ..., most: _Optional[int] = ...) -> None: ...

class StateReply(_message.Message):
    __slots__ = ("known", "chunks", "data", "proofs", "header")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PROOFS_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    known: bool
    chunks: int
    data: _containers.RepeatedScalarFieldContainer[bytes]
    proofs: _containers.RepeatedCompositeFieldContainer[StateProof]
    header: bytes
    def __init__(self, known: _Optional[bool] = ..., chunks: _Optional[int] = ..., data: _Optional[_Iterable[bytes]] = ..., proofs: _Optional[_Iterable[_Union[StateProof, _Mapping]]] = ..., header: _Optional[bytes] = ...) -> None: ...

class StateProof(_message.Message):
    __slots__ = ("siblings",)
    SIBLINGS_FIELD_NUMBER: _ClassVar[int]
    siblings: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, siblings: _Optional[_Iterable[bytes]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("round", "state_digest")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    round: int
    state_digest: bytes
    def __init__(self, round: _Optional[int] = ..., state_digest: _Optional[bytes] = ...) -> None: ...

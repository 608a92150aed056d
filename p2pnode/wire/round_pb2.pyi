from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Slot(_message.Message):
    __slots__ = ("protocol", "run", "round", "attempt", "parent")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run: bytes
    round: int
    attempt: int
    parent: bytes
    def __init__(self, protocol: _Optional[int] = ..., run: _Optional[bytes] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., parent: _Optional[bytes] = ...) -> None: ...

class Lock(_message.Message):
    __slots__ = ("attempt", "closing", "state_digest")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    closing: bytes
    state_digest: bytes
    def __init__(self, attempt: _Optional[int] = ..., closing: _Optional[bytes] = ..., state_digest: _Optional[bytes] = ...) -> None: ...

class Accusation(_message.Message):
    __slots__ = ("digest", "accused")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACCUSED_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    accused: bytes
    def __init__(self, digest: _Optional[bytes] = ..., accused: _Optional[bytes] = ...) -> None: ...

class RoundEntry(_message.Message):
    __slots__ = ("slot", "lock", "nonce_digest", "bandwidth", "exchange_key", "evidence", "revocation_version", "contributes", "leaving")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LOCK_FIELD_NUMBER: _ClassVar[int]
    NONCE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_KEY_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    REVOCATION_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    slot: Slot
    lock: Lock
    nonce_digest: bytes
    bandwidth: int
    exchange_key: bytes
    evidence: _containers.RepeatedCompositeFieldContainer[Accusation]
    revocation_version: int
    contributes: bool
    leaving: bool
    def __init__(self, slot: _Optional[_Union[Slot, _Mapping]] = ..., lock: _Optional[_Union[Lock, _Mapping]] = ..., nonce_digest: _Optional[bytes] = ..., bandwidth: _Optional[int] = ..., exchange_key: _Optional[bytes] = ..., evidence: _Optional[_Iterable[_Union[Accusation, _Mapping]]] = ..., revocation_version: _Optional[int] = ..., contributes: _Optional[bool] = ..., leaving: _Optional[bool] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("reducer", "start", "stop", "deputy")
    REDUCER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    DEPUTY_FIELD_NUMBER: _ClassVar[int]
    reducer: bytes
    start: int
    stop: int
    deputy: bytes
    def __init__(self, reducer: _Optional[bytes] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., deputy: _Optional[bytes] = ...) -> None: ...

class Relock(_message.Message):
    __slots__ = ("proposal", "closing")
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    proposal: bytes
    closing: bytes
    def __init__(self, proposal: _Optional[bytes] = ..., closing: _Optional[bytes] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("slot", "entries", "parts", "provisional", "relock", "leaves", "contribute_ms", "close_ms", "vote_ms")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    RELOCK_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTE_MS_FIELD_NUMBER: _ClassVar[int]
    CLOSE_MS_FIELD_NUMBER: _ClassVar[int]
    VOTE_MS_FIELD_NUMBER: _ClassVar[int]
    slot: Slot
    entries: _containers.RepeatedScalarFieldContainer[bytes]
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    provisional: bool
    relock: Relock
    leaves: _containers.RepeatedScalarFieldContainer[bytes]
    contribute_ms: int
    close_ms: int
    vote_ms: int
    def __init__(self, slot: _Optional[_Union[Slot, _Mapping]] = ..., entries: _Optional[_Iterable[bytes]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., provisional: _Optional[bool] = ..., relock: _Optional[_Union[Relock, _Mapping]] = ..., leaves: _Optional[_Iterable[bytes]] = ..., contribute_ms: _Optional[int] = ..., close_ms: _Optional[int] = ..., vote_ms: _Optional[int] = ...) -> None: ...

class Mechanism(_message.Message):
    __slots__ = ("mode", "clip", "noise_multiplier", "sampling_rate", "steps")
    MODE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_RATE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    mode: str
    clip: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    def __init__(self, mode: _Optional[str] = ..., clip: _Optional[float] = ..., noise_multiplier: _Optional[float] = ..., sampling_rate: _Optional[float] = ..., steps: _Optional[int] = ...) -> None: ...

class Commitment(_message.Message):
    __slots__ = ("slot", "group", "root", "steps", "mechanism")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    slot: Slot
    group: bytes
    root: bytes
    steps: int
    mechanism: Mechanism
    def __init__(self, slot: _Optional[_Union[Slot, _Mapping]] = ..., group: _Optional[bytes] = ..., root: _Optional[bytes] = ..., steps: _Optional[int] = ..., mechanism: _Optional[_Union[Mechanism, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("group", "part", "index", "data", "proof")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    group: bytes
    part: int
    index: int
    data: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, group: _Optional[bytes] = ..., part: _Optional[int] = ..., index: _Optional[int] = ..., data: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("contributor", "commitment")
    CONTRIBUTOR_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    contributor: bytes
    commitment: bytes
    def __init__(self, contributor: _Optional[bytes] = ..., commitment: _Optional[bytes] = ...) -> None: ...

class OutputHeader(_message.Message):
    __slots__ = ("slot", "group", "part", "accepted", "weight", "root")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    slot: Slot
    group: bytes
    part: int
    accepted: _containers.RepeatedCompositeFieldContainer[Row]
    weight: int
    root: bytes
    def __init__(self, slot: _Optional[_Union[Slot, _Mapping]] = ..., group: _Optional[bytes] = ..., part: _Optional[int] = ..., accepted: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., weight: _Optional[int] = ..., root: _Optional[bytes] = ...) -> None: ...

class OutputChunk(_message.Message):
    __slots__ = ("header", "index", "data", "proof")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    index: int
    data: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, header: _Optional[bytes] = ..., index: _Optional[int] = ..., data: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Closing(_message.Message):
    __slots__ = ("slot", "group", "outputs", "counted")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    slot: Slot
    group: bytes
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    counted: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, slot: _Optional[_Union[Slot, _Mapping]] = ..., group: _Optional[bytes] = ..., outputs: _Optional[_Iterable[bytes]] = ..., counted: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Vote(_message.Message):
    __slots__ = ("slot", "closing", "state_digest", "group")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    slot: Slot
    closing: bytes
    state_digest: bytes
    group: bytes
    def __init__(self, slot: _Optional[_Union[Slot, _Mapping]] = ..., closing: _Optional[bytes] = ..., state_digest: _Optional[bytes] = ..., group: _Optional[bytes] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("slot", "lock")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LOCK_FIELD_NUMBER: _ClassVar[int]
    slot: Slot
    lock: Lock
    def __init__(self, slot: _Optional[_Union[Slot, _Mapping]] = ..., lock: _Optional[_Union[Lock, _Mapping]] = ...) -> None: ...

class Reveal(_message.Message):
    __slots__ = ("closing", "nonce")
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    closing: bytes
    nonce: bytes
    def __init__(self, closing: _Optional[bytes] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Audited(_message.Message):
    __slots__ = ("closing", "parts")
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    closing: bytes
    parts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, closing: _Optional[bytes] = ..., parts: _Optional[_Iterable[int]] = ...) -> None: ...

class AuditRow(_message.Message):
    __slots__ = ("group", "part", "index", "commitment", "data", "proof")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    group: bytes
    part: int
    index: int
    commitment: bytes
    data: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, group: _Optional[bytes] = ..., part: _Optional[int] = ..., index: _Optional[int] = ..., commitment: _Optional[bytes] = ..., data: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class EvidencePiece(_message.Message):
    __slots__ = ("digest", "size", "offset", "data")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    size: int
    offset: int
    data: bytes
    def __init__(self, digest: _Optional[bytes] = ..., size: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("kind", "digest", "round", "part", "index", "peer")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NOTHING: _ClassVar[Want.Kind]
        PROPOSAL: _ClassVar[Want.Kind]
        CLOSING: _ClassVar[Want.Kind]
        OUTPUT: _ClassVar[Want.Kind]
        ROW: _ClassVar[Want.Kind]
        CHUNK: _ClassVar[Want.Kind]
        CERTIFICATE: _ClassVar[Want.Kind]
        EVIDENCE: _ClassVar[Want.Kind]
        AUDIT: _ClassVar[Want.Kind]
        MINE: _ClassVar[Want.Kind]
    NOTHING: Want.Kind
    PROPOSAL: Want.Kind
    CLOSING: Want.Kind
    OUTPUT: Want.Kind
    ROW: Want.Kind
    CHUNK: Want.Kind
    CERTIFICATE: Want.Kind
    EVIDENCE: Want.Kind
    AUDIT: Want.Kind
    MINE: Want.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    kind: Want.Kind
    digest: bytes
    round: int
    part: int
    index: int
    peer: bytes
    def __init__(self, kind: _Optional[_Union[Want.Kind, str]] = ..., digest: _Optional[bytes] = ..., round: _Optional[int] = ..., part: _Optional[int] = ..., index: _Optional[int] = ..., peer: _Optional[bytes] = ...) -> None: ...

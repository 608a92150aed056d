"""What both sides of state sync share: limits of a call, and decoding."""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from p2pnode.messages import reject

CHUNKS_A_CALL: Final = 8
RECORDS_A_CALL: Final = 256

M = TypeVar("M", bound=Message)


def decode(message_class: type[M], data: bytes) -> M:
    """A request or reply. REJECT request-form."""
    try:
        return message_class.FromString(data)
    except DecodeError:
        raise reject("request-form", f"not a {message_class.__name__}") from None

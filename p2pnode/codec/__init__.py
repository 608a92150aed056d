"""Codecs: float32 values to bytes and back. Sizes and bounds are checked before anything is decoded."""

from __future__ import annotations

from p2pnode.codec.base import Codec, FloatVector
from p2pnode.codec.plain import Float16Codec, Float32Codec

__all__ = ["Codec", "Float16Codec", "Float32Codec", "FloatVector", "codec_named"]


def codec_named(name: str) -> Codec:
    """The codec that a manifest names. KeyError for an unknown name (the manifest's validation forbids those)."""
    codecs: dict[str, Codec] = {"float32": Float32Codec(), "float16": Float16Codec()}
    return codecs[name]

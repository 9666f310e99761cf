from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Image(_message.Message):
    __slots__ = ("data", "height", "width", "token")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    height: int
    width: int
    token: int
    def __init__(self, data: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., token: _Optional[int] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("version", "owner", "chunk", "chunks", "first_step", "spec", "tokens", "kinds", "positions", "step_begin", "reward", "discount", "flags", "images", "text_tokens")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    STEP_BEGIN_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    DISCOUNT_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    version: int
    owner: str
    chunk: int
    chunks: int
    first_step: int
    spec: str
    tokens: bytes
    kinds: bytes
    positions: bytes
    step_begin: bytes
    reward: bytes
    discount: bytes
    flags: bytes
    images: _containers.RepeatedCompositeFieldContainer[Image]
    text_tokens: bytes
    def __init__(self, version: _Optional[int] = ..., owner: _Optional[str] = ..., chunk: _Optional[int] = ..., chunks: _Optional[int] = ..., first_step: _Optional[int] = ..., spec: _Optional[str] = ..., tokens: _Optional[bytes] = ..., kinds: _Optional[bytes] = ..., positions: _Optional[bytes] = ..., step_begin: _Optional[bytes] = ..., reward: _Optional[bytes] = ..., discount: _Optional[bytes] = ..., flags: _Optional[bytes] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., text_tokens: _Optional[bytes] = ...) -> None: ...

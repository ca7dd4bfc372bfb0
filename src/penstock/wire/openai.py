"""OpenAI's API: embeddings requests in, embeddings and models out, and how its errors look.

Also how the texts or tokens of an embeddings request become input tensors, and which of them run together.
Not here: routes (`gateway/`), tokenizing and pooling (the model's own).
Source: OpenAI API reference, "Create embeddings", "List models", "Error codes".
"""

import struct
from binascii import b2a_base64
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec

from penstock.core.errors import CallerError
from penstock.core.models import ModelSpec
from penstock.wire.oip import length_bucket

__all__ = [
    "INPUTS_MAX",
    "TOKEN_ID_MAX",
    "EmbeddingsRequest",
    "InvalidParameter",
    "check_dimensions",
    "decode_embeddings_request",
    "encode_embeddings_response",
    "encode_model",
    "encode_models",
    "encode_openai_error",
    "pack_texts",
    "pack_token_ids",
    "plan_embedding_chunks",
]

INPUTS_MAX = 2_048  # OpenAI API reference: "must not exceed 2048" inputs
TOKEN_ID_MAX = 2**31 - 1  # token ids travel as INT32
_MODEL_CHARS_MAX = 256  # of a model's name; ours are far shorter
_MESSAGE_CHARS_MAX = 256  # a message may quote what the caller sent

_LENGTH = struct.Struct("<I")
_PADDING = b"\xff\xff\xff\xff"  # INT32 -1
_encode_json = msgspec.json.Encoder().encode

_Token = Annotated[int, msgspec.Meta(ge=0, le=TOKEN_ID_MAX)]


class _Request(msgspec.Struct):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=_MODEL_CHARS_MAX)]
    input: str | list[str | _Token | list[_Token]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=TOKEN_ID_MAX)] | None = None
    user: str | None = None


_decoder = msgspec.json.Decoder(_Request)


class InvalidParameter(CallerError):
    """A parameter of an OpenAI request is wrong. Change it.

    Attributes:
        param: Its name, None if the request as a whole is wrong.
        code: OpenAI's machine-readable code, None if it has none.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """One decoded `POST /v1/embeddings`.

    Attributes:
        model: The model's name.
        texts: Each input as UTF-8, in order, none empty; () if tokens were sent.
        tokens: Each input as token ids, in order, none empty; () if texts were sent.
        as_base64: Embeddings go out as base64 of little-endian FP32, not as numbers.
        dimensions: The embedding length asked for; None leaves it to the model. See `check_dimensions`.
    """

    model: str
    texts: tuple[bytes, ...]
    tokens: tuple[tuple[int, ...], ...]
    as_base64: bool
    dimensions: int | None


def decode_embeddings_request(body: bytes) -> EmbeddingsRequest:
    """Decode a `POST /v1/embeddings`. `user` is accepted and not used.

    Raises:
        InvalidParameter: Anything the caller must change, naming the parameter, what was expected and what was got.
    """
    try:
        wire = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = str(error)[:_MESSAGE_CHARS_MAX]
        raise InvalidParameter(f"embeddings request: {message}", param=_param_of(str(error))) from error
    inputs: list[Any] = [wire.input] if isinstance(wire.input, str) else wire.input
    if inputs and isinstance(inputs[0], int):
        inputs = [inputs]
        _check_tokens(inputs[0], "input")
    if not 1 <= len(inputs) <= INPUTS_MAX:
        raise InvalidParameter(f"input: expected between 1 and {INPUTS_MAX} inputs, got {len(inputs)}", param="input")
    texts: tuple[bytes, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    if isinstance(inputs[0], str):
        texts = tuple([_check_text(item, index) for index, item in enumerate(inputs)])
    else:
        tokens = tuple([_check_tokens(item, f"input[{index}]") for index, item in enumerate(inputs)])
    return EmbeddingsRequest(wire.model, texts, tokens, wire.encoding_format == "base64", wire.dimensions)


def _param_of(message: str) -> str | None:
    """Find the parameter in a msgspec message: "... - at `$.input[3]`" or "... missing required field `model`"."""
    for mark in ("`$.", "required field `"):
        _, found, rest = message.partition(mark)
        if found:
            return rest.split("`")[0].split("[")[0].split(".")[0]
    return None


def _check_text(item: Any, index: int) -> bytes:
    if not isinstance(item, str):
        raise InvalidParameter(
            f"input[{index}]: expected a string like input[0], got {type(item).__name__}", param="input"
        )
    if not item:
        raise InvalidParameter(f"input[{index}]: expected a non-empty string, got ''", param="input")
    return item.encode()


def _check_tokens(item: Any, where: str) -> tuple[int, ...]:
    if not isinstance(item, list):
        raise InvalidParameter(
            f"{where}: expected a list of tokens like input[0], got {type(item).__name__}", param="input"
        )
    if not item:
        raise InvalidParameter(f"{where}: expected at least one token, got an empty list", param="input")
    for index, token in enumerate(item):
        if type(token) is not int:
            raise InvalidParameter(
                f"{where}[{index}]: expected a token (an integer), got {type(token).__name__}", param="input"
            )
    return tuple(item)


def check_dimensions(spec: ModelSpec, dimensions: int | None) -> None:
    """Check that a model can give embeddings of the length asked for; None asks for its own.

    Raises:
        InvalidParameter: It cannot. Leave `dimensions` out, or ask for a length that the message names.
    """
    lengths = spec.dimensions or tuple(t.shape[-1] for t in spec.outputs if t.name == "embedding")
    if dimensions is not None and dimensions not in lengths:
        offered = " or ".join(str(n) for n in lengths if n > 0) or "none"
        raise InvalidParameter(
            f"dimensions: expected {offered} for model {spec.name!r}, got {dimensions}", param="dimensions"
        )


def encode_embeddings_response(
    model: str, embeddings: list[memoryview], *, as_base64: bool, prompt_tokens: int
) -> bytes:
    """Encode the answer to a `POST /v1/embeddings`.

    Args:
        model: The model's name.
        embeddings: One per input, in order: little-endian FP32, contiguous bytes.
        as_base64: As the request asked.
        prompt_tokens: Tokens the model counted in all inputs.
    """
    parts = [b'{"object":"list","data":[']
    for index, embedding in enumerate(embeddings):
        parts.append(b'%b{"object":"embedding","index":%d,"embedding":' % (b"," if index else b"", index))
        if as_base64:
            parts += (b'"', b2a_base64(embedding, newline=False), b'"}')
        else:
            parts += (_encode_json(embedding.cast("f").tolist()), b"}")
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (prompt_tokens, prompt_tokens)
    parts += (b'],"model":', _encode_json(model), b',"usage":', usage, b"}")
    return b"".join(parts)


def encode_models(names: list[str], created: int) -> bytes:
    """Encode the body of `GET /v1/models`. `created` is in seconds since the epoch."""
    return _encode_json({"object": "list", "data": [_describe_model(name, created) for name in names]})


def encode_model(name: str, created: int) -> bytes:
    """Encode the body of `GET /v1/models/{name}`. `created` is in seconds since the epoch."""
    return _encode_json(_describe_model(name, created))


def _describe_model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "penstock"}


def encode_openai_error(message: str, status: int, *, param: str | None = None, code: str | None = None) -> bytes:
    """Encode an error as OpenAI's clients expect it; its type follows from the HTTP status.

    Args:
        message: What was expected and what was got.
        status: The HTTP status the body goes out with, 4xx or 5xx.
        param: The parameter at fault, if one is.
        code: Machine-readable code, e.g. `model_not_found`.
    """
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    return _encode_json({"error": {"message": message, "type": kind, "param": param, "code": code}})


def pack_texts(texts: list[bytes]) -> bytes:
    """Pack texts as the data of a BYTES tensor of shape (len(texts), 1)."""
    pieces: list[bytes] = []
    for text in texts:
        pieces += (_LENGTH.pack(len(text)), text)
    return b"".join(pieces)


def pack_token_ids(rows: list[tuple[int, ...]]) -> tuple[bytes, int]:
    """Pack token ids, at least one row, as the data of an INT32 tensor, short rows padded on the right with -1.

    Returns:
        The data and the length of a row; the tensor's shape is (len(rows), length).
    """
    width = max(map(len, rows))
    pieces: list[bytes] = []
    for row in rows:
        pieces += (struct.pack(f"<{len(row)}i", *row), _PADDING * (width - len(row)))
    return b"".join(pieces), width


def plan_embedding_chunks(lengths: list[int], rows_max: int) -> list[list[int]]:
    """Plan which inputs of one request run together, so that a short one never pays for a long neighbour.

    Each chunk holds one `length_bucket`.

    Args:
        lengths: Of each input, all in bytes or all in tokens, >= 0.
        rows_max: Most inputs in one chunk, >= 1.

    Returns:
        Indices into `lengths`, each exactly once; within a chunk and from chunk to chunk lengths never fall.
    """
    assert rows_max >= 1
    chunks: list[list[int]] = []
    bucket = -1
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        found = length_bucket(lengths[index])
        if found != bucket or len(chunks[-1]) == rows_max:
            chunks.append([])
            bucket = found
        chunks[-1].append(index)
    return chunks

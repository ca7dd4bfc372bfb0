"""Content codings of the inference port: gzip and deflate, both ways, bounded.

Source: RFC 9110 section 8.4.1; "deflate" is the zlib format.
"""

import zlib

from penstock.core.errors import CallerError

__all__ = ["COMPRESS_BYTES_MIN", "compress", "decompress", "shown"]

# Answers smaller than this are not worth compressing (nginx gzip_min_length is 20; one TCP segment is 1,460).
COMPRESS_BYTES_MIN = 1_024
COMPRESS_LEVEL = 1


def shown(value: bytes) -> str:
    """Quote a header's value in a message: short and printable, whatever it is."""
    return value[:64].decode("ascii", "backslashreplace")


def decompress(body: bytes, encoding: bytes, bytes_max: int) -> bytes:
    """Undo `content-encoding`, never growing past `bytes_max`.

    Raises:
        CallerError: 415 for another coding, 413 for too much, 400 for a body that is not what the header says.
    """
    kind = encoding.strip().lower()
    if kind == b"identity":
        return body
    if kind not in (b"gzip", b"x-gzip", b"deflate"):
        raise CallerError(f"content-encoding: expected gzip, deflate or identity, got {shown(encoding)}", status=415)
    # zlib's window codes: +16 reads gzip; "deflate" is the zlib format (RFC 9110 8.4.1.2).
    engine = zlib.decompressobj(zlib.MAX_WBITS | 16 if b"gzip" in kind else zlib.MAX_WBITS)
    try:
        plain = engine.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise CallerError(f"content-encoding: the body is not {shown(kind)}: {error}") from error
    if len(plain) > bytes_max:
        raise CallerError(f"expected a body of at most {bytes_max} bytes after decompression, got more", status=413)
    if not engine.eof or engine.unused_data:
        raise CallerError(
            f"content-encoding: expected one whole {shown(kind)} stream, got part of one or bytes after it"
        )
    return plain


def compress(body: bytes, accepted: bytes) -> tuple[bytes, bytes]:
    """Compress if the client takes gzip, or else deflate; returns the body and the header lines that say so."""
    offers = set()
    for offer in accepted.lower().replace(b" ", b"").split(b","):
        kind, _, quality = offer.partition(b";q=")
        if not quality or quality.strip(b"0."):  # q=0 means "not this one" (RFC 9110 12.4.2)
            offers.add(kind)
    for kind, wbits in ((b"gzip", zlib.MAX_WBITS | 16), (b"deflate", zlib.MAX_WBITS)):
        if kind in offers:
            engine = zlib.compressobj(COMPRESS_LEVEL, zlib.DEFLATED, wbits)
            packed = engine.compress(body) + engine.flush()
            return packed, b"content-encoding: %b\r\nvary: accept-encoding\r\n" % kind
    return body, b""

"""Time stamps of an outside authority over a checkpoint (RFC 3161): asked for, and checked offline.

What is stamped are the octets of the signed checkpoint; `openssl ts -verify` checks the same answer.
"""

from datetime import UTC, datetime

from cryptography import x509
from rfc3161_client import (
    HashAlgorithm,
    PKIStatus,
    TimestampRequestBuilder,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from aimx.tlog.errors import FormatError, ProofError


def request(data: bytes) -> bytes:
    """A query for a stamp over `data`, with a nonce, asking for the authority's certificate (DER)."""
    return TimestampRequestBuilder().data(data).hash_algorithm(HashAlgorithm.SHA256).build().as_bytes()


def roots(pem: bytes) -> list[x509.Certificate]:
    """The authorities to trust. Raises FormatError."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise FormatError("not certificates in PEM") from error


def check(answer: bytes, data: bytes, pem: bytes) -> datetime:
    """When the authority has seen `data`, by its own clock.

    Raises FormatError for what is no answer, ProofError for a refusal, a stamp over something else, or one that does
    not lead to a certificate in `pem`.
    """
    trusted = roots(pem)
    try:
        response = decode_timestamp_response(answer)
    except ValueError as error:
        raise FormatError("not an answer of a time stamp authority") from error
    if response.status not in (PKIStatus.GRANTED, PKIStatus.GRANTED_WITH_MODS):
        raise ProofError("the time stamp authority has not granted the stamp")
    try:
        VerifierBuilder(roots=trusted).build().verify_message(response, data)
    except (VerificationError, ValueError, AssertionError) as error:
        raise ProofError(f"the time stamp does not hold: {error}") from None
    stamped = response.tst_info.gen_time
    return stamped if stamped.tzinfo else stamped.replace(tzinfo=UTC)

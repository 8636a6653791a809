"""From what an agent wants to say to the octets of a mail, and the few words a mail needs besides its payload."""

import re
from collections.abc import Mapping, Sequence

from aimx.message import compose as mail
from aimx.message.part import content_type as parse_content_type
from aimx.message.payload import Part, PayloadError, codec_of
from aimx.message.payload import encode as encode_payload
from aimx.sdk.errors import InvalidMessage
from aimx.sdk.message import Message
from aimx.telemetry.context import Context, write

MAX_REFERENCES = 20
"""RFC 5322 sets no limit; the first and the newest are what threading needs (RFC 5256 §3)."""
_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+\s*(;[^\r\n\0]*)?")
"""RFC 6838 §4.2; what follows the semicolon is read leniently."""


def encode(payload: object, content_type: str | None = None) -> Part:
    """The payload part. `content_type` chooses the codec and stands in the mail as given; bytes are taken as encoded.

    Raises PayloadError.
    """
    if content_type is None:
        return encode_payload(payload)
    if not _TYPE.fullmatch(content_type):
        raise PayloadError(f"{content_type!r} is no content type; write for example application/json")
    if isinstance(payload, bytes | bytearray | memoryview):
        return Part(content_type, bytes(payload))
    if codec_of(content_type) == "text":
        return _text(payload, content_type)
    part = encode_payload(payload, codec_of(content_type))
    # A protobuf type without its name would be unreadable for the other side: the codec's own type says it.
    return part if codec_of(content_type) == "protobuf" and "=" not in content_type else Part(content_type, part.data)


def _text(payload: object, content_type: str) -> Part:
    """In the charset that the content type promises; UTF-8, and said so, where it promises none."""
    if not isinstance(payload, str):
        raise PayloadError(f"only a str can be sent as {content_type}")
    charset = parse_content_type(content_type).parameters.get("charset")
    if charset is None:
        charset = "utf-8"
        content_type += "" if payload.isascii() else '; charset="utf-8"'
    try:
        return Part(content_type, payload.encode(charset))
    except LookupError:
        raise PayloadError(f"there is no charset {charset!r}") from None
    except UnicodeEncodeError:
        raise PayloadError(f"the text cannot be written in {charset}") from None


def compose(
    part: Part,
    *,
    sender: str,
    to: Sequence[str],
    subject: str,
    message_id: str,
    context: Context,
    workflow: str | None,
    answered: Message | None,
    headers: Mapping[str, str],
) -> bytes:
    """The mail. Raises InvalidMessage for what cannot be written in a header."""
    chain: list[str] = []
    if answered is not None:
        known = answered.references
        chain = known if len(known) <= MAX_REFERENCES else [known[0], *known[1 - MAX_REFERENCES :]]
    try:
        return mail.compose(
            sender=sender,
            to=to,
            payload=part,
            subject=subject,
            message_id=message_id,
            in_reply_to=answered.message_id or None if answered is not None else None,
            references=chain,
            workflow=workflow,
            headers=headers,
            stamps=write(context),
        )
    except ValueError as error:
        raise InvalidMessage(str(error)) from None


def subject(answered: Message | None, workflow: str | None) -> str:
    """A subject for who gave none: people who look into the mailbox should see what belongs together."""
    if answered is not None:
        text = answered.subject
        return text if text.lower().startswith("re:") else f"Re: {text}".rstrip()
    return workflow or ""


def notice(message: Message) -> str:
    """What a delivery status notification says to people, on one line."""
    try:
        text = message.payload
    except PayloadError:
        text = message.subject
    return " ".join(str(text).split())[:300]

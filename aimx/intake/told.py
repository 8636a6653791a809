"""What a message says about itself, read once from its header block."""

import re
from dataclasses import dataclass

from aimx.message import identifier
from aimx.message.header import HeaderBlock
from aimx.telemetry.context import Context, Invalid, read

MAX_TEXT = 998
"""Characters of a workflow or subject that are kept: no line may be longer (RFC 5322 §2.1.1)."""
MAX_REFERENCES = 32
"""Of References, the last so many are looked up."""
MAX_PARENTS = 8
"""Of In-Reply-To, the first so many after the first."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_PRIORITY = re.compile(r"-?[0-9]", re.ASCII)
_CUSTOMARY = re.compile(r"([1-5])\b", re.ASCII)  # "1 (Highest)"
_YES, _NO = frozenset({"yes", "true", "1"}), frozenset({"no", "false", "0"})
_X_PRIORITY = {"1": 4, "2": 2, "3": 0, "4": -2, "5": -4}


@dataclass(slots=True)
class Told:
    message_id: str | None
    in_reply_to: str | None
    references: list[str]
    """Oldest first; what is to be looked up after `in_reply_to`, from the end."""
    workflow: str | None
    subject: str
    content_type: str
    """Lower case, without parameters; `text/plain` when absent (RFC 2045 §5.2)."""
    priority: int
    """Asked for; -9 to 9, 0 is normal."""
    context: Context | Invalid
    trace_only: bool | None
    """`X-Trace-Only`; None when it says neither yes nor no."""


def tell(header: HeaderBlock, asked_priority: int | None = None) -> Told:
    """`asked_priority` is the MT-PRIORITY parameter of MAIL; it goes before the headers."""
    replied = identifier.message_ids(header.get("In-Reply-To"))
    content_type = (header.get("Content-Type") or "").partition(";")[0].strip().lower()
    return Told(
        message_id=_own_id(header.get("Message-ID")),
        in_reply_to=replied[0] if replied else None,
        # Further parents (RFC 5322 §3.6.4 allows several) are looked up before References, the first of them first.
        references=[*identifier.message_ids(header.get("References"))[-MAX_REFERENCES:], *replied[MAX_PARENTS:0:-1]],
        workflow=_one_line(header.get("X-Workflow-ID")) or None,
        subject=_one_line(header.get("Subject")),
        content_type=content_type[:255] or "text/plain",
        priority=_asked(header) if asked_priority is None else asked_priority,
        context=read(header),
        trace_only=_trace_only(header.get("X-Trace-Only")),
    )


def _trace_only(value: str | None) -> bool | None:
    word = (value or "no").strip().lower()
    return True if word in _YES else False if word in _NO else None


def _one_line(value: str | None) -> str:
    """RFC 2047 words may hold line ends and terminal controls, which nobody who names a workflow or a subject means."""
    return _CONTROLS.sub(" ", value or "").strip()[:MAX_TEXT]


def _asked(header: HeaderBlock) -> int:
    """`MT-Priority` (RFC 6758 §4), else the customary `X-Priority` (1 highest to 5 lowest)."""
    asked = (header.get("MT-Priority") or "").strip()
    if _PRIORITY.fullmatch(asked):
        return int(asked)
    customary = _CUSTOMARY.match(header.get("X-Priority") or "")
    return _X_PRIORITY[customary[1]] if customary else 0


def _own_id(value: str | None) -> str | None:
    """The id between angle brackets; of a field without any, its text: a message has one Message-ID, however odd."""
    ids = identifier.message_ids(value)
    return ids[0] if ids else (value or "")[:MAX_TEXT] or None

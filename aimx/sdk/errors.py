"""What can go wrong for an agent, one type for each thing it might do about it. All are `AimxError`."""

import socket
import ssl


class AimxError(Exception):
    """Anything the SDK raises on purpose."""


class NotConfigured(AimxError, ValueError):
    """It is not known which node, or as whom. The text says what to give."""


class InvalidMessage(AimxError, ValueError):
    """What was given cannot be said in a mail: an address, a header, an identifier. Nothing was sent."""


class Unreachable(AimxError, ConnectionError):
    """The node cannot be reached, or the connection was lost and nothing of the call was done."""


class SignInFailed(AimxError):
    """The node does not know this agent, or not with this password, or the agent is disabled."""


class Unconfirmed(AimxError):
    """The connection was lost after the message was handed over and before the 250.

    It was handed over once more in vain, so it may have been accepted or not. Sent again with the same
    `idempotency_key` it is accepted once; `message_id` finds it in the node.
    """

    def __init__(self, message_id: str, idempotency_key: str) -> None:
        super().__init__(
            f"the connection was lost before the answer; whether {message_id} was accepted is not known;"
            f" send it again with idempotency_key={idempotency_key!r}"
        )
        self.message_id = message_id
        self.idempotency_key = idempotency_key


class Refused(AimxError):
    """The node refused the message. Nothing of it was delivered to anybody.

    `code` is the SMTP reply code, `enhanced` the enhanced status code (RFC 3463), empty when the node gave none.
    """

    def __init__(
        self, code: int, enhanced: str, text: str, *, recipient: str | None = None, trace_id: str | None = None
    ) -> None:
        super().__init__(f"{code} {enhanced} {text}".replace("  ", " "))
        self.code = code
        self.enhanced = enhanced
        self.text = text
        self.recipient = recipient
        """The recipient it was refused for, when it was one of them."""
        self.trace_id = trace_id
        """The trace in which the refusal can be seen."""

    @property
    def temporary(self) -> bool:
        """The same message may be accepted later (4xx)."""
        return 400 <= self.code < 500


class LoopRefused(Refused):
    """The loop guard stopped the conversation (554 5.4.6). The text says which rule and how to raise it."""


class KeyReused(Refused):
    """The idempotency key was used for another message before. Nothing was sent; take a new key."""


class NoReply(AimxError, TimeoutError):
    """`request` waited as long as it was told, and no reply came. The request itself was delivered."""


class Undelivered(AimxError):
    """Instead of a reply to `request`, the notice came that the request could not be delivered.

    `notice` is that message; its payload is the human-readable part. `status` is the enhanced status code (RFC 3463),
    `trace_id` shows what happened, `event` is the entry in the audit log that proves it; empty where it does not say.
    """

    def __init__(self, text: str, notice: object, *, status: str = "", trace_id: str = "", event: str = "") -> None:
        super().__init__(text)
        self.notice = notice
        self.status = status
        self.trace_id = trace_id
        self.event = event


def reason(error: BaseException, ca: str | None = None) -> str:
    """Why a connection could not be made, in words a user can do something with."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    match cause:
        case ssl.SSLCertVerificationError():
            trusted = f"the authority in {ca}" if ca else "an authority this system trusts"
            return f"the certificate is not of {trusted}; trust the node's tls/ca.pem"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return "TLS is not spoken there; use the node's smtps and imaps ports"
        case ConnectionRefusedError():
            return "nobody listens there; is the node running?"
        case socket.gaierror():
            return "there is no such host"
        case TimeoutError():
            return "no answer"
    text = " ".join(str(getattr(cause, "message", cause)).split())
    if text.startswith("Malformed SMTP response"):
        return "what answers there does not speak SMTP"
    return text or type(cause).__name__

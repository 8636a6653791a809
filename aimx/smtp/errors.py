"""The two kinds of error a peer can cause. The third, ours, is every other exception. `Session` catches each once."""

from aimx.intake.envelope import Reply


class ProtocolError(Exception):
    """The peer broke the protocol. Counted: a session has only so many."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, enhanced, text)


class Refused(Exception):
    """The peer asked, correctly, for what it may not have."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, enhanced, text)

"""The three kinds of error a command can end in; `session.py` catches them once per command.

`Bad`: the peer broke the protocol (BAD). `No`: the peer asked for what it may not have (NO, with a response code where
one fits, RFC 5530). Anything else: we failed (NO [SERVERBUG], logged with its id, no text of ours to the peer).
`Bye` ends the session because it cannot be continued safely.
"""


class Bad(Exception):
    """The peer broke the protocol; `text` is sent after BAD and holds nothing but our own words."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class No(Exception):
    """The peer asked for what it may not have; `code` is a response code such as `NONEXISTENT`, or empty."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class Bye(Exception):
    """The session cannot go on: framing lost, or a limit that only closing can keep."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

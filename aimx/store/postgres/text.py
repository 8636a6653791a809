"""What PostgreSQL's `text` cannot hold: NUL, and code points that are half a pair."""


def storable(given: str) -> str:
    """The same text with U+FFFD in their place. The octets it was read from are kept elsewhere, as they came."""
    if "\0" in given:
        given = given.replace("\0", "\ufffd")
    if given.isascii():
        return given
    return given.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def storable_or_none(given: str | None) -> str | None:
    return None if given is None else storable(given)

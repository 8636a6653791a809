"""The patterns of rules and limits: shell globs, to which upper and lower case are the same."""

from fnmatch import fnmatchcase


def matches(pattern: str, value: str) -> bool:
    """
    >>> matches("Review-*", "review-7")
    True
    """
    return fnmatchcase(value.lower(), pattern.lower())

"""The two ways in which something about a log can be wrong."""


class FormatError(ValueError):
    """The bytes do not have the form they claim: a note, key, checkpoint, tile, path, proof or receipt is malformed."""


class ProofError(ValueError):
    """The form is right and the mathematics is not: a proof, a signature or a commitment does not hold."""

"""The transparency log as mathematics: RFC 6962 tree, proofs, C2SP notes, checkpoints, tiles, leaves and receipts.

No I/O and no store: the server, the SDK and an offline verifier share it. Whoever holds bytes hands them in; what comes
back is bytes, or one of two refusals: `ProofError` (the mathematics does not hold) or `FormatError` (these bytes are
not what they claim to be).
"""

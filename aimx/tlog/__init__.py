"""The transparency log as mathematics: RFC 6962 tree, proofs, C2SP signed notes, checkpoints and tiles.

No I/O and no store: the server, the SDK and an offline verifier share it.
"""

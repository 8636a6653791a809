"""The tamper-evident log: the event catalogue, leaves and commitments, the sequencer, checkpoints, verification.

Knows the store and tlog. Knows nothing of SMTP, IMAP or routing.
"""

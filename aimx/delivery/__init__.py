"""Work what the accepting commit could not finish: due deliveries under lease, retry with backoff, DSN at the end.

One file per transport. Knows nothing of how a message came in.
"""

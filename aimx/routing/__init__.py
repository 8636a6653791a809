"""From a recipient and a header block to a decision: mailbox, pool, list or refusal; and the loop guard.

Pure functions over rules and data. Reads no store, sends nothing.
"""

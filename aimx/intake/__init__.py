"""Accept one message: context → stamp → route → commit → receipt.

SMTP, IMAP APPEND, DSNs and HTTP all come in here, so every accepted message is traced, routed and audited the same way.
"""

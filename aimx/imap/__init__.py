"""The IMAP server: sans-IO grammar and session state, fetch and search; a thin asyncio shell.

Reads and marks what the store holds; hands APPEND to intake.
"""

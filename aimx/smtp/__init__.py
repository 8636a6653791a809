"""The SMTP server: a sans-IO core, the session on top of it, and submission policy.

Receives envelopes and hands them to intake. Parses no message, opens no store.
"""

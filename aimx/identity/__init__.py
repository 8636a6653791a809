"""Who is who: domains, agents, credentials, sign-in throttling, certificates.

Decides whether a secret proves an agent. Knows nothing of messages or protocols beyond SASL.
"""

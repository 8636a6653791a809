"""Who is who: domains, agents, credentials, sign-in throttling, certificates.

Decides whether a secret proves an agent, and whose name an agent may send under. Knows SASL, the agents part of the
store, and files in the data folder. Knows nothing of messages, SMTP or IMAP.
"""

"""The IMAP server: a sans-IO grammar and session, fetch and search over the store, and a thin asyncio shell.

It reads and marks what the store holds and hands APPEND to intake. It must not know SQL, how a message is routed or
delivered, nor how spans are exported. `server.py` is the only file here that touches a socket.
"""

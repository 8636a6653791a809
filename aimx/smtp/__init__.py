"""The SMTP server: a sans-IO core, the session on top of it, and submission policy.

Receives envelopes and hands them to intake. Parses no message, opens no store.

- `core`: octets → command lines and message data, in linear time
- `address`: the paths and parameters of MAIL and RCPT
- `session`: what each command means and when it may come; awaits the directory and intake, never a socket
- `server`: sockets, TLS, timers, limits, stopping
"""

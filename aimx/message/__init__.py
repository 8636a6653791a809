"""What a message is: its header block parsed once, its payload codecs, its identifiers and the DSN.

Pure data and functions. Knows nothing of stores, sockets, settings or spans.
"""

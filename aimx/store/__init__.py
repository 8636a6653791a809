"""Everything AIMX keeps: one contract (`contract.py`), one package a database.

A store commits once per accepted message and answers set-based questions. It decides nothing about mail:
what to route, refuse, retry or log is decided above and handed in as data or as a pure function of what the commit saw.
"""

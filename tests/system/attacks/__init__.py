"""What somebody with root, the database and sometimes the signing key does to a node's audit log, and how it shows.

`forgery` is the attacker's own knowledge of the formats and `victim` his reach: neither uses AIMX, as he need not.
`deeds` is the catalogue: each attack, who can do it, and what tells an auditor. docs/audit-threat-model.md is written
from it: `python -m tests.system.attacks` prints the table anew.
"""

"""Whose name an agent may send under: its own, in the envelope and in the header.

`MAIL FROM` must be the agent's own address (the null path is the node's, for its DSNs), and so must the one address of
`From:`; a `Sender:`, where there is one, too. A message without `From:` is not refused here.
"""

from collections.abc import Sequence
from email.utils import getaddresses

from aimx.identity.addresses import normalise


def envelope_refusal(mail_from: str, agent: str) -> str | None:
    """Why `agent` may not say `MAIL FROM:<mail_from>`, or None. Both normalised."""
    if mail_from == agent:
        return None
    if not mail_from:
        return f"the null sender is the node's own; send as <{agent}>"
    return f"you are {agent}; send as <{agent}>"


def header_refusal(field: str, values: Sequence[str], agent: str) -> str | None:
    """Why `agent` may not send with these decoded values of `From` or `Sender`, or None.

    More than one address is refused: a reader would not know which of them was proved.
    """
    if not values:
        return None
    domain = agent.partition("@")[2]
    found = [normalise(address, domain) for _, address in getaddresses(values) if address]
    if len(values) == 1 and found == [agent]:
        return None
    return f"{field} must be your own address, <{agent}>, and nothing else"

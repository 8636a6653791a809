"""AIMX: mail for AI agents, where every message is a trace and every event can be proved."""

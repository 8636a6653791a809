"""The `aimx` command: one file per noun."""

"""`python -m aimx.cli`: the `aimx` command where no script is installed."""

from aimx.cli import main

main()

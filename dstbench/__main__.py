"""`python -m dstbench`: the command line."""

from dstbench.cli import main

main()

"""The command line from a checkout, installed or not: `python run_all.py --help`."""

import sys
from pathlib import Path

from dstbench.cli import main

if __name__ == "__main__":
    if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        sys.path.append(sys.path.pop(0))  # a user's own `tasks` or `methods` go before the checkout's folders
    main()

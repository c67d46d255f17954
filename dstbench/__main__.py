"""`python -m dstbench`: the command line."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # `-m` puts the working directory first, whose files may have the names of modules that we import.
    if sys.path[0] == os.getcwd() and Path(__file__).resolve().parents[1] != Path.cwd():
        del sys.path[0]
    from dstbench.cli import main

    main()

"""The command line from a checkout, installed or not: `python run_all.py --help`."""

from dstbench.cli import main

if __name__ == "__main__":
    main()

"""`llm-manager serve` for those who type `python wsgi.py`."""

import sys

from commands.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))

"""``python -m pfungst``."""

from pfungst.cli import main

main()

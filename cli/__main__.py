"""`python -m mnemoscope.cli` is the same command."""

from .main import main

main()

"""`python -m gptcalc`."""

from gptcalc.cli.app import main

main()

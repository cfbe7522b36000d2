"""`python -m pyro_compress` is the command line."""

from pyro_compress.cli.main import main

main(prog_name="pyro-compress")

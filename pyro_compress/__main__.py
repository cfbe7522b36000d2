"""`pyro-compress`, also as `python -m pyro_compress`."""

import sys


def run() -> None:
    """The command line; Ctrl-C ends it with one line and exit code 130, also while it is still being loaded."""
    try:
        from pyro_compress.cli.main import main

        main(prog_name="pyro-compress")
    except KeyboardInterrupt:
        sys.stderr.write("stopped before it was done\n")
        sys.exit(130)


if __name__ == "__main__":
    run()

"""`python -m paramgolf` runs the command `paramgolf`."""

from paramgolf.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m milepost`: the `milepost` command where its script is not on the path."""

from milepost.cli import main

if __name__ == "__main__":
    main()

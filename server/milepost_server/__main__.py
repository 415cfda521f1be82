"""Runs the server's command line by `python -m milepost_server`."""

from milepost_server.cli import main

if __name__ == "__main__":
    main()

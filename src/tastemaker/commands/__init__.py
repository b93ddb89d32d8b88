"""One file per command, each with `main(argv) -> exit code`; the table of commands is in `cli.py`."""

"""`python -m spanbert_ext` is the `spanbert` command."""

from spanbert_ext.cli.command import main

if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m p2pnode`: the same as the `p2pnode` command."""

from p2pnode.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m embedpipe_cli`: the same as the console script (torchrun needs a module)."""

from .main import main

if __name__ == "__main__":
    main()

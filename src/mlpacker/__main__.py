"""`python -m mlpacker` is `mlpacker`."""

from mlpacker.cli import main

if __name__ == "__main__":
    main()

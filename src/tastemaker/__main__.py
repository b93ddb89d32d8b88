"""`python -m tastemaker`, `accelerate launch -m tastemaker` and `torchrun -m tastemaker`."""

import sys

from tastemaker.cli import main

if __name__ == "__main__":
    sys.exit(main())

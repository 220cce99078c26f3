"""`python -m axon_core`, which is `axon`: for launchers that start a module, as torchrun does."""

import sys

from axon_core.cli import main

if __name__ == "__main__":
    sys.exit(main())

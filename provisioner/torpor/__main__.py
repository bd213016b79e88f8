"""``python -m torpor`` is the command ``torpor``."""

import sys

from torpor.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

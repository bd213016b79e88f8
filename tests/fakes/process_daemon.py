"""torpord on the ``ProcessBackend``: ``python tests/fakes/process_daemon.py``, options as torpord's."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__":
    from torpor.daemon.__main__ import main

    def make_backend(_source, _paths):
        from tests.fakes.process_backend import faults

        return faults(os.environ)

    sys.exit(main(make_backend=make_backend))

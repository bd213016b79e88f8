"""``python -I -S -E launcher/``: tiny, because this file is compiled at every start."""

import sys

# .../torpor/runsc/launcher: only packages with empty ``__init__`` lie on the way.
sys.path.insert(0, sys.path[0].rsplit("/", 3)[0])

from torpor.runsc.launcher.run import main

main()

"""Tiny, because this file is compiled at every start."""

import sys

# .../torpor/runsc/launcher/__main__.py: only packages with next to empty ``__init__`` on the way.
sys.path.insert(0, __file__.rsplit("/", 4)[0])

if sys.argv[1] == "join":
    from torpor.runsc.launcher.join import join as main
else:
    from torpor.runsc.launcher.run import main

main(sys.argv[2:] if sys.argv[1] == "join" else sys.argv[1:])

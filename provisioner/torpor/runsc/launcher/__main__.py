"""Tiny, because this file is compiled at every start."""

import sys

# .../torpor/runsc/launcher/__main__.py: only packages with next to empty ``__init__`` on the way.
sys.path.insert(0, __file__.rsplit("/", 4)[0])

arguments = sys.argv[1:]
if arguments[0] == "wait":
    from torpor.runsc.launcher.wait import wait

    arguments = wait()
if arguments[0] == "join":
    from torpor.runsc.launcher.join import join

    join(arguments[1:])
else:
    from torpor.runsc.launcher.run import main

    main(arguments)

"""``python -I -B -S torpor_guest boot.json``; tiny, as this file is compiled at every start."""

import sys

# Without -S the user's packages are there: a torpor among them would hide the one of this sandbox.
sys.path[:] = [folder for folder in sys.path[1:] if not folder.endswith("-packages")]
sys.path.insert(0, __file__.rpartition("/")[0].rpartition("/")[0] or ".")

from torpor_guest.start import main  # noqa: E402 (the path comes first)

main(sys.argv)

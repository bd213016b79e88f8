"""What to do next about a kernel: pure decisions, and the one way to finish a clean-up."""

from torpor.lifecycle.cleanup import run_to_end as run_to_end
from torpor.lifecycle.steps import Seen as Seen
from torpor.lifecycle.steps import Status as Status
from torpor.lifecycle.steps import Step as Step
from torpor.lifecycle.steps import Target as Target
from torpor.lifecycle.steps import next_step as next_step

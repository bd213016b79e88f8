"""The framed, resumable byte protocol between host and guest; the same code runs at both ends.

Standard library only, and nothing of the rest of ``torpor``: inside the sandbox only this folder exists.
"""

from .errors import LinkProtocolError as LinkProtocolError
from .errors import MessageTooLarge as MessageTooLarge
from .errors import QueueFull as QueueFull
from .session import Link as Link
from .types import Channel as Channel
from .types import Limits as Limits
from .types import LinkState as LinkState
from .types import Message as Message
from .types import Opened as Opened
from .types import Role as Role
from .types import message_cost as message_cost

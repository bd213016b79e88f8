"""The whole protocol in one table: what may happen in which state, and what follows.

What is not listed is an error of the peer (or, for ``CONNECT``, of the caller).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from .types import LinkState, Role


class Event(enum.IntEnum):
    """What can happen to a link. The first five are also the kinds of frames; no kind is zero."""

    HELLO = 1  # opens the session
    WHOLE = 2  # a message in one frame
    START = 3  # the table of lengths of a larger message
    CHUNK = 4  # the next bytes of it
    ACK = 5  # what the peer has handled, and how much it lets us send
    CONNECT = 16  # our application wants a session (again)
    MARKER = 17  # the bytes we hunted for: a session begins behind them
    BLANK = 18  # zero bytes where a frame should start: the host is about to begin a session
    BROKEN = 19  # the peer did what it must not
    CLOSE = 20  # our application is done


_S = LinkState
_BOTH = {
    (_S.OPENING, Event.HELLO): _S.OPEN,
    (_S.OPEN, Event.WHOLE): _S.OPEN,
    (_S.OPEN, Event.START): _S.OPEN,
    (_S.OPEN, Event.CHUNK): _S.OPEN,
    (_S.OPEN, Event.ACK): _S.OPEN,
    (_S.OPENING, Event.MARKER): _S.OPENING,
    (_S.OPENING, Event.BROKEN): _S.FAILED,
    (_S.OPEN, Event.BROKEN): _S.FAILED,
    **{(state, Event.CLOSE): _S.CLOSED for state in _S},
}

NEXT: Mapping[Role, Mapping[tuple[LinkState, Event], LinkState]] = {
    Role.HOST: {
        **_BOTH,
        (_S.IDLE, Event.CONNECT): _S.OPENING,
        (_S.OPENING, Event.CONNECT): _S.OPENING,
        (_S.OPEN, Event.CONNECT): _S.OPENING,
        (_S.FAILED, Event.CONNECT): _S.OPENING,
    },
    Role.GUEST: {
        **_BOTH,
        (_S.IDLE, Event.MARKER): _S.OPENING,
        (_S.FAILED, Event.MARKER): _S.OPENING,
        (_S.OPENING, Event.BLANK): _S.OPENING,
        (_S.OPEN, Event.BLANK): _S.OPENING,
    },
}

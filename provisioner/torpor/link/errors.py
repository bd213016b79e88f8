"""Errors of the link. Standard library only: the guest imports this file inside the sandbox."""

from __future__ import annotations


class LinkProtocolError(Exception):
    """The peer broke the link protocol; the session has failed and stays failed."""


class QueueFull(Exception):
    """A message does not fit the bounded queue of its channel; nothing of it was queued."""


class MessageTooLarge(QueueFull):
    """A message that no queue of this link will ever take; waiting for room cannot help."""

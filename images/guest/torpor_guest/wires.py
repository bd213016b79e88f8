"""The guest's connections to one kernel: shell, control, stdin, iopub and the heartbeat."""

from __future__ import annotations

from functools import partial

from torpor.link import Channel

from torpor_guest.loop import Loop, Timer
from torpor_guest.wire import Wire, random_identity
from torpor_guest.zmtp import Part

TYPE_CHECKING = False  # as mypy knows it; typing itself takes 20 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable


_REQUESTS = (Channel.CONTROL, Channel.SHELL, Channel.STDIN)
_NAMES = {
    Channel.CONTROL: "control",
    Channel.SHELL: "shell",
    Channel.STDIN: "stdin",
    Channel.IOPUB: "iopub",
}
_BEAT_S = 5.0
_MISSED_BEATS = 2


class Wires:
    """Four data connections by channel, opened for each new kernel process, and its heartbeat.

    ``on_message(channel, parts)`` gets every message, ``on_up(channel)`` every finished handshake.
    The three request sockets share one identity: a kernel sends input_request to the identity that
    executes.
    """

    def __init__(
        self,
        loop: Loop,
        max_message_bytes: int,
        on_message: Callable[[Channel, list[Part]], None],
        on_up: Callable[[Channel], None],
        on_beating: Callable[[bool], None],
    ) -> None:
        identity = random_identity()
        self._ports: dict[str, int] = {}
        self._on_up = on_up
        self.by_channel: dict[Channel, Wire] = {}
        for channel in _NAMES:
            kind = b"SUB" if channel is Channel.IOPUB else b"DEALER"
            self.by_channel[channel] = Wire(
                loop,
                kind,
                identity if kind == b"DEALER" else b"",
                max_message_bytes,
                partial(on_message, channel),
                partial(self._up, channel),
            )
        self._heart = Heart(loop, on_beating)

    def open(self, ports: dict[str, int]) -> None:
        """Connect to a new kernel process: shell knocks until it is let in, the others follow."""
        self._ports = ports
        self.by_channel[Channel.SHELL].open(ports["shell"])

    def close(self) -> None:
        """Deliver what the ended kernel has left, then close. Twice is fine."""
        self._heart.close()
        for wire in self.by_channel.values():
            wire.drain()
            wire.close()
        self._ports = {}

    def drop_unsent(self) -> dict[Channel, tuple[int, int]]:
        """Forget what the kernel has not taken; give (messages, bytes) by channel, if any."""
        dropped = {channel: wire.drop_unsent() for channel, wire in self.by_channel.items()}
        return {channel: counts for channel, counts in dropped.items() if counts[0]}

    @property
    def all_up(self) -> bool:
        """Whether all four data connections are up."""
        return all(wire.up for wire in self.by_channel.values())

    def _up(self, channel: Channel) -> None:
        ports, self._ports = self._ports, {}
        if channel is Channel.SHELL and ports:
            for other, name in _NAMES.items():
                if other is not Channel.SHELL:
                    self.by_channel[other].open(ports[name])
            self._heart.open(ports["hb"])
        self._on_up(channel)


class Heart:
    """Pings the kernel's heartbeat port; tells when it stops or starts again.

    Counts missed pings instead of measuring time: the clock jumps when a sandbox wakes from
    hibernation.
    """

    def __init__(self, loop: Loop, on_beating: Callable[[bool], None]) -> None:
        self._loop = loop
        self._on_beating = on_beating
        self._wire = Wire(loop, b"REQ", b"", 65536, self._pong, lambda: None)
        self._timer: Timer | None = None
        self._missed = 0
        self._beating: bool | None = None

    def open(self, port: int) -> None:
        """Ping this port every few seconds, until ``close``."""
        self.close()
        self._beating = None
        self._missed = 0
        self._wire.open(port)
        self._ping()

    def close(self) -> None:
        """Stop pinging. Twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wire.close()
        self._wire.drop_unsent()

    def _ping(self) -> None:
        if self._missed >= _MISSED_BEATS and self._beating is not False:
            self._tell(False)
        if self._missed == 0 or self._beating is False:
            self._wire.drop_unsent()
            self._wire.send([b"", b"torpor"])
        self._missed += 1
        self._timer = self._loop.after(_BEAT_S, self._ping)

    def _pong(self, _parts: list[Part]) -> None:
        self._missed = 0
        if not self._beating:
            self._tell(True)

    def _tell(self, beating: bool) -> None:
        self._beating = beating
        self._on_beating(beating)

"""Which snapshots in an object store are no longer wanted. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torpor.snapshot.manifest import Ancestor

DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What lists show of a snapshot in a store.

    ``size_bytes``: of its image. ``stored_bytes``: what its chunks take in the store.
    """

    kernel_id: str
    generation: int
    name: str
    parent: Ancestor | None
    created_at: str
    created_s: float
    template: str
    kernel_name: str
    size_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What stays: of each kernel the ``keep`` newest, and what is at most ``keep_days`` old.

    Either rule alone has a snapshot go, the newest of a kernel included when it is too old; None
    switches a rule off. Named checkpoints stay, whatever the rules say, and do not count for ``keep``.
    """

    keep: int | None = None
    keep_days: float | None = None


def surplus(
    stored: Iterable[Stored],
    policy: RetentionPolicy,
    *,
    now_s: float,
    protect: Collection[tuple[str, int]] = (),
) -> tuple[Stored, ...]:
    """Give what ``policy`` lets go, by kernel, the newest first.

    ``protect``: kernel and generation of what must stay, because it is all there is of a kernel that
    is wanted, say. What was made later than ``now_s`` is not old.
    """
    kernels: dict[str, list[Stored]] = defaultdict(list)
    for each in stored:
        if not each.name:
            kernels[each.kernel_id].append(each)
    return tuple(
        each
        for kernel_id in sorted(kernels)
        for rank, each in enumerate(sorted(kernels[kernel_id], key=lambda it: -it.generation))
        if (each.kernel_id, each.generation) not in protect
        and _goes(policy, rank, now_s - each.created_s)
    )


def _goes(policy: RetentionPolicy, rank: int, age_s: float) -> bool:
    too_many = policy.keep is not None and rank >= policy.keep
    too_old = policy.keep_days is not None and age_s > policy.keep_days * DAY_S
    return too_many or too_old

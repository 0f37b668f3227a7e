"""Named points at which a test's process can be made to die. Inert unless that process installs a hook itself.

Nothing outside the process can reach it: no variable, no flag. `tests/budget/test_failpoints.py` goes through all.
"""

from __future__ import annotations

from collections.abc import Callable

#: In the order in which a call meets them; the three around the send are reached by the model client.
POINTS = (
    "before_reserve",
    "before_reserve_commit",
    "after_reserve_commit",
    "before_dispatch_commit",
    "after_dispatch_commit",
    "after_send",
    "after_first_byte",
    "mid_stream",
    "before_settle",
    "before_settle_commit",
    "after_settle_commit",
    "during_recovery",
)

#: When a file of an older layout is taken over; and in a file ledger's upkeep, which no call waits for.
TAKEOVER_POINT = "before_takeover_commit"
UPKEEP_POINTS = (
    "before_cut_commit",
    "after_cut_commit",
)

_hook: Callable[[str], None] | None = None


def install(hook: Callable[[str], None] | None) -> None:
    """Sets what happens at every point of this process; None takes it away."""
    global _hook
    _hook = hook


def reach(point: str) -> None:
    """Marks a point."""
    if _hook is not None:
        _hook(point)

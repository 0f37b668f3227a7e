"""Does once, before the service is ready, what the first turn would else wait for: imports of 40 MiB and 0.5 s."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentao_gov.clock import Deadline
from agentao_gov.governor.types import SessionKey, SessionSpec
from agentao_gov.service.profiles import OfferedProfile

if TYPE_CHECKING:
    from agentao_gov.governor import Governor

__all__ = ["warm_up"]

_WARM_S_MAX = 10.0


def warm_up(governor: Governor, offered: Iterable[OfferedProfile]) -> None:
    """Opens and closes one agent without MCP servers. Nothing is sent; a failure is left for the first turn to tell."""
    offer = next(iter(offered), None)
    if offer is None:
        return
    plain = offer.resolved.profile
    profile = replace(
        offer.resolved, profile=plain.model_copy(update={"mcp": plain.mcp.model_copy(update={"servers": {}})})
    )
    try:
        with tempfile.TemporaryDirectory(prefix="agentao-gov-warm-") as folder:
            key = SessionKey("default", "warm-up")
            spec = SessionSpec(key, "warm-up", profile, offer.model, Path(folder), "in-process")
            deadline = Deadline.after(_WARM_S_MAX)
            governor.open(spec, None, deadline).close(deadline)
    except Exception:
        logging.getLogger(__name__).warning("warm-up failed", exc_info=True)

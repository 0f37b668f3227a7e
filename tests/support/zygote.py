"""One zygote for all tests that host sessions in processes: it takes seconds of processor time to get ready."""

from __future__ import annotations

import functools

from agentao_gov.worker.spawn import ZygoteSpawner

__all__ = ["SharedZygote", "shared_zygote"]


class SharedZygote(ZygoteSpawner):
    """Outlives each test's factory."""

    def close(self) -> None:
        """Not yet: others use it."""

    def end(self) -> None:
        """Now. The next use starts another."""
        super().close()


@functools.lru_cache(maxsize=1)
def shared_zygote() -> SharedZygote:
    """The one."""
    return SharedZygote({})

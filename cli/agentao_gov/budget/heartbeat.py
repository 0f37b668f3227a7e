"""Says every few seconds that this process lives, and resolves what dead ones left in the ledger."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from agentao_gov.errors import StoreError

__all__ = ["Heartbeat"]

_log = logging.getLogger(__name__)


class Heartbeat:
    """A daemon thread of its own, so that no slow call can silence it."""

    def __init__(self, beat: Callable[[], None], every_s: float) -> None:
        self._beat = beat
        self._every_s = every_s
        #: Why the last beat could not be made; None after one that could.
        self.failure: StoreError | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and waits for it."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._beat()
                self.failure = None
            except StoreError as error:
                self.failure = error
                # The next call of a turn meets the same error and fails closed; here it is only worth a line.
                _log.warning("token ledger heartbeat failed: %s", error)
            except Exception as error:
                # Whatever it is: a heart that stops lets neighbours take what this process holds.
                self.failure = StoreError(f"The token ledger's heartbeat failed: {type(error).__name__}.")
                _log.exception("token ledger heartbeat failed")

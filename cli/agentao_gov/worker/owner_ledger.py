"""The owner's side of a session process's ledger: every amount it asks for is booked on its own scopes, nobody else's.

The process only names amounts. Whose budget they come from is decided here, from the session's key and the turn that
runs, so that a process taken over by its tools can neither spend another tenant's tokens nor raise its own limits.
What it held when it died is charged or given back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agentao_gov.budget.types import Ledger, Reservation, ReservationLostError, ReserveRequest, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.errors import BadRequestError, GovError, StoreError
from agentao_gov.governor.report import Usage
from agentao_gov.worker.peer import WireError
from agentao_gov.worker.wire import GOV_ERROR, encode_error

_log = logging.getLogger(__name__)
#: Tokens in one call are bounded by any model's window; beyond this a number is nonsense.
_TOKENS_MAX = 1 << 32
#: Calls a session may wait or hold tokens for at once: its loop, its summariser, some sub-agents.
_OPEN_MAX = 64
#: A reservation is named by a UUID.
_NAME_CHARS_MAX = 64

Answer = Callable[[Any], None]


@dataclasses.dataclass(slots=True)
class _Open:
    """A reservation the process holds. Its id in the ledger is ours: a name the process chose could be another's."""

    reservation: Reservation
    dispatched: bool = False


class OwnerLedger:
    """Books for one session. Handlers come from the wire's reader thread; waits get a thread of their own."""

    def __init__(self, ledger: Ledger, tenant: str, model: str, clock: Clock = SYSTEM_CLOCK) -> None:
        """`model`: whose price the session's tokens have."""
        self._ledger = ledger
        self._tenant = tenant
        self._model = model
        self._clock = clock
        self._lock = threading.Lock()
        # All below under `_lock`.
        self._scopes: tuple[ScopeLimit, ...] = ()
        self._user = ""
        #: By the process's own names for them.
        self._open: dict[str, _Open] = {}
        self._waiting: dict[str, threading.Event] = {}
        self._prompt = self._completion = self._estimated = self._calls = 0

    def begin(self, user: str, scopes: tuple[ScopeLimit, ...]) -> None:
        """A turn begins: from now on amounts are booked on these scopes."""
        with self._lock:
            self._user, self._scopes = user, scopes
            self._prompt = self._completion = self._estimated = self._calls = 0

    def usage(self) -> Usage:
        """What the turn in flight has used, as far as it was booked."""
        with self._lock:
            return Usage(
                prompt_tokens=self._prompt,
                completion_tokens=self._completion,
                total_tokens=self._prompt + self._completion,
                llm_calls=self._calls,
                estimated_tokens=self._estimated,
            )

    def abandon(self) -> None:
        """The process is gone: waits end, calls that were sent are charged whole, the others give back."""
        with self._lock:
            left, self._open = self._open, {}
            waiting, self._waiting = self._waiting, {}
        for event in waiting.values():
            event.set()
        for entry in left.values():
            held = entry.reservation
            try:
                if entry.dispatched:
                    with self._booked(held.prompt_tokens, held.output_tokens, held.total_tokens):
                        self._ledger.charge_estimate(held.id, held.prompt_tokens, held.output_tokens)
                else:
                    self._ledger.release(held.id)
            except StoreError:
                _log.exception("The reservation %s of a session process that died could not be posted", held.id)

    def handle(self, params: Mapping[str, Any], answer: Answer) -> None:
        """One request from the process."""
        if params.get("op") == "reserve":
            threading.Thread(target=self._answer, args=(self._reserve, params, answer), daemon=True).start()
        else:
            self._answer(self._post, params, answer)

    def notice(self, params: Mapping[str, Any]) -> None:
        """A notification from the process: it no longer wants to wait."""
        with self._lock:
            event = self._waiting.get(str(params.get("id")))
        if event is not None:
            event.set()

    @staticmethod
    def _answer(work: Callable[[Mapping[str, Any]], Any], params: Mapping[str, Any], answer: Answer) -> None:
        try:
            answer(work(params))
        except GovError as error:
            answer(WireError(GOV_ERROR, error.message, encode_error(error)))
        except (KeyError, TypeError, ValueError) as error:
            answer(WireError(-32602, f"Invalid params: {error!r}", None))

    def _reserve(self, params: Mapping[str, Any]) -> dict[str, Any]:
        number = _name(params["id"])
        event = threading.Event()
        with self._lock:
            if len(self._waiting) + len(self._open) >= _OPEN_MAX:
                raise BadRequestError("A session process holds too many reservations.")
            if number in self._waiting or number in self._open:
                raise BadRequestError("A session process asked for the same reservation twice.")
            if not self._scopes:
                raise BadRequestError("A session process asked for tokens before its first turn.")
            self._waiting[number] = event
            scopes, user = self._scopes, self._user
        try:
            reservation = self._ledger.reserve(
                ReserveRequest(
                    id=uuid.uuid4().hex,
                    scopes=scopes,
                    prompt_tokens=_tokens(params["prompt_tokens"]),
                    output_tokens_min=_tokens(params["output_tokens_min"]),
                    output_tokens_max=_tokens(params["output_tokens_max"]),
                    tenant=self._tenant,
                    user=user,
                    model=self._model,
                ),
                deadline=Deadline.after(float(params["remaining_s"]), self._clock),
                cancelled=event,
            )
        finally:
            with self._lock:
                abandoned = self._waiting.pop(number, None) is None
        with self._lock:
            if not abandoned:
                self._open[number] = _Open(reservation)
        if abandoned:  # the process died while this was granted
            self._ledger.release(reservation.id)
        return {
            "prompt_tokens": reservation.prompt_tokens,
            "output_tokens": reservation.output_tokens,
            "windows": list(reservation.windows),
            "state": str(reservation.state),
        }

    def _post(self, params: Mapping[str, Any]) -> dict[str, Any]:
        operation = params["op"]
        if operation == "balances":
            with self._lock:
                scopes = self._scopes
            return {"balances": [dataclasses.asdict(balance) for balance in self._ledger.balances(scopes)]}
        number = _name(params["id"])
        with self._lock:
            entry = self._open.get(number)
        if entry is None:
            raise BadRequestError("A session process named a reservation that is not its own.")
        if operation == "dispatch":
            self._ledger.dispatch(entry.reservation.id)
            with self._lock:
                entry.dispatched = True
                self._calls += 1
            return {}
        if operation == "extend":
            granted = self._ledger.extend(entry.reservation.id, _tokens(params["output_tokens"]))
            with self._lock:
                held = entry.reservation
                entry.reservation = dataclasses.replace(held, output_tokens=held.output_tokens + granted)
            return {"granted": granted}
        self._finish(operation, number, params)
        return {}

    def _finish(self, operation: str, number: str, params: Mapping[str, Any]) -> None:
        """Settles, charges or releases: the last that is heard of a reservation."""
        if operation not in ("settle", "charge_estimate", "release"):
            raise ValueError(operation)
        prompt = completion = estimated = 0
        if operation != "release":
            prompt, completion = _tokens(params["prompt_tokens"]), _tokens(params["completion_tokens"])
            estimated = prompt + completion if operation == "charge_estimate" else _tokens(params["estimated_tokens"])
        with self._lock:
            entry = self._open.pop(number, None)
        if entry is None:  # the process is being buried: what it held was just charged or given back
            return
        held = entry.reservation.id
        if operation == "release":
            self._ledger.release(held)
            return
        with self._booked(prompt, completion, estimated):
            if operation == "settle":
                self._ledger.settle(held, prompt, completion, estimated_tokens=estimated)
            else:
                self._ledger.charge_estimate(held, prompt, completion)

    @contextlib.contextmanager
    def _booked(self, prompt: int, completion: int, estimated: int) -> Iterator[None]:
        """Counts what is posted, also where the store fails now: the ledger owes such a post and makes it later."""
        try:
            yield
        except ReservationLostError:
            raise
        except StoreError:
            self._book(prompt, completion, estimated)
            raise
        self._book(prompt, completion, estimated)

    def _book(self, prompt: int, completion: int, estimated: int) -> None:
        with self._lock:
            self._prompt += prompt
            self._completion += completion
            self._estimated += estimated


def _name(value: Any) -> str:
    """What the process calls a reservation."""
    if not isinstance(value, str) or not 0 < len(value) <= _NAME_CHARS_MAX:
        raise ValueError("not the name of a reservation")
    return value


def _tokens(value: Any) -> int:
    """A count of tokens; anything else is refused before it reaches the ledger."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _TOKENS_MAX:
        raise ValueError(f"{value!r} is not a number of tokens")
    return value

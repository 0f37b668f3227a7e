"""Three kinds of users: someone with a short question, someone with code, someone with research.

Each Locust user is one person: opens a session, asks a few things, thinks in between, and starts over. How many turns,
how long the answers, how long the pauses: `agentao_gov.loadtest.plan` draws them per task, from a seed. Copy a class
and change it: `profile` is the profile of your deployment, `task` one of qa, code, research, custom.
"""

from __future__ import annotations

import itertools
import os
import random

import gevent
from locust import User, task

from agentao_gov.loadtest.client import TurnClient
from agentao_gov.loadtest.plan import Pace, draw_session, prompt_of

_numbers = itertools.count()


class SessionUser(User):
    """A person with a session. Abstract: says how, not what."""

    abstract = True
    profile = "qa"
    task_kind = "qa"

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self.number = next(_numbers)
        self.rng = random.Random(f"{options.draw_seed}:{self.number}")
        self.client = TurnClient(
            self.host or self.environment.host or "http://127.0.0.1:8080",
            keys={"default": os.environ.get(options.api_key_env, "")},
            api=options.api,
        )
        # Locust starts users in batches of a second; people do not arrive on the stroke.
        gevent.sleep(self.rng.random())

    @task
    def session(self) -> None:
        """One session, from its first question to its last."""
        options = self.environment.parsed_options
        session_id = f"locust-{os.getpid()}-{self.number}-{self.rng.getrandbits(32):08x}"
        for index, turn in enumerate(draw_session(self.task_kind, self.rng)):
            label = f"{self.profile} turn {index + 1}"
            result = self.client.turn(
                session=session_id,
                tenant="default",
                user=f"locust-{self.number}",
                profile=self.profile,
                message=prompt_of(turn, label, directive=options.simulated, pace=Pace()),
                timeout_s=options.turn_timeout,
            )
            failed = None if result.outcome == "answered" else RuntimeError(result.outcome)
            self._fire("turn", result.service_us / 1000, result.completion_tokens, failed)
            if result.first_token_us is not None:
                self._fire("first token", result.first_token_us / 1000, 0, None)
            gevent.sleep(turn.think_s)

    def _fire(self, kind: str, milliseconds: float, length: int, exception: Exception | None) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=self.profile,
            response_time=milliseconds,
            response_length=length,
            exception=exception,
            context={},
        )


class QaUser(SessionUser):
    """Short questions, short answers, hardly a tool."""

    weight = 8
    profile = "qa"
    task_kind = "qa"


class CodeUser(SessionUser):
    """A few tool calls for each question, longer pauses."""

    weight = 1
    profile = "code"
    task_kind = "code"


class ResearchUser(SessionUser):
    """Many tool calls, long answers, few turns."""

    weight = 1
    profile = "research"
    task_kind = "research"

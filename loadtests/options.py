"""Options of a plain Locust run: `locust -f loadtests/locustfile.py --api openai ...`; shown in the web UI too."""

from __future__ import annotations

from locust import events


@events.init_command_line_parser.add_listener
def add_options(parser: object) -> None:
    """What the users need to know besides `--host`."""
    add = parser.add_argument  # type: ignore[attr-defined]
    add("--api", default="native", choices=["native", "openai"], help="Which of the service's interfaces to use")
    add("--api-key-env", default="AGENTAO_GOV_API_KEY", help="Environment variable that holds the API key")
    add("--turn-timeout", type=float, default=120.0, help="Seconds after which a turn is given up")
    add("--simulated", action="store_true", help="The model behind the service is the simulator: script it in prompts")
    add("--draw-seed", type=int, default=0, help="Seed of sessions, prompts and pauses")

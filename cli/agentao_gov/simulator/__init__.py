"""A scripted OpenAI-compatible model on loopback, for tests, the checklist and load tests."""

from agentao_gov.simulator.handle import Simulator, start_simulator
from agentao_gov.simulator.script import Behaviour, Script, load_script
from agentao_gov.simulator.truth import CallTally, RequestRecord, Truth, key_id

__all__ = [
    "Behaviour",
    "CallTally",
    "RequestRecord",
    "Script",
    "Simulator",
    "Truth",
    "key_id",
    "load_script",
    "start_simulator",
]

"""A scripted model on loopback that speaks three wires, for tests, the checklist and load tests."""

from agentao_gov.simulator.handle import Simulator, start_simulator
from agentao_gov.simulator.script import Behaviour, Script, load_limits, load_script
from agentao_gov.simulator.truth import CallTally, RequestRecord, Truth, key_id

__all__ = [
    "Behaviour",
    "CallTally",
    "RequestRecord",
    "Script",
    "Simulator",
    "Truth",
    "key_id",
    "load_limits",
    "load_script",
    "start_simulator",
]

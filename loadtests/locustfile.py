"""The Locust suite. It runs in two ways:

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8080        users, web UI, shapes: Locust as you know it
    agentao-gov loadtest ...                                              the same sessions under an open-loop plan

In the second way Locust gives the processes, workers, web UI and statistics as a cross-check, and the plan's own
generator sends the turns: Locust starts users in batches of a second and forgets those that were slow, so its numbers
cannot be a gate. Everything the generator sees goes, raw, to the command that started it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# `locust -f` puts neither this folder nor its neighbours on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

if os.environ.get("AGENTAO_GOV_LOADTEST"):
    from managed import Planned  # noqa: F401  Locust finds user classes by looking at this module's names
else:
    from options import add_options  # noqa: F401
    from shapes import chosen_shape
    from users import CodeUser, QaUser, ResearchUser  # noqa: F401

    # Locust takes any shape class it finds, so there is one only when one was asked for.
    if (_shape := chosen_shape()) is not None:
        Shape = _shape

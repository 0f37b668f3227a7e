"""A service gets itself below a pair of wardens and keeps its pid, its signals and its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from agentao_gov.process import SessionTree, session_tag
from agentao_gov.process.layers import survey_layers
from agentao_gov.process.supervision import Heartbeat, is_guarded
from tests.process import zoo

#: A service in small: goes below wardens, says so, then ends as asked by a signal.
SERVICE = """
import signal, subprocess, sys
from agentao_gov.process.supervision import Heartbeat, WardenPlan, is_guarded, run_below_warden
if not is_guarded():
    run_below_warden([sys.executable, *sys.argv], WardenPlan(stale_s=30, restarts=0))
signal.signal(signal.SIGTERM, lambda n, f: sys.exit(143))
heart = Heartbeat()
heart.start()
subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
print("up", heart.watched, flush=True)
signal.pause()
"""


def service(tmp_path: Path, tree: SessionTree) -> subprocess.Popen[bytes]:
    program = tmp_path / "service.py"
    program.write_text(SERVICE)
    child = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, env={**os.environ, **tree.env()})
    assert child.stdout is not None
    assert child.stdout.readline() == b"up True\n"
    return child


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_guarded_service_ends_whole_and_with_its_own_code(tmp_path: Path, signum: signal.Signals, code: int) -> None:
    """SIGTERM to the pid the user knows reaches the service; SIGKILL of it ends the service and its child."""
    tree = SessionTree(session_tag("acme", uuid.uuid4().hex))
    child = service(tmp_path, tree)

    child.send_signal(signum)

    assert child.wait(10) == code
    assert zoo.until(lambda: tree.members() == ())
    child.communicate()


def test_without_a_warden_the_heart_stays_still() -> None:
    """A service that was started without one goes on as always."""
    heart = Heartbeat()

    heart.start()
    heart.stop()

    assert not heart.watched
    assert not is_guarded()


def test_the_survey_names_every_layer_and_what_it_survives() -> None:
    """What `doctor` prints; the layers every Linux has are there."""
    layers = {layer.name: layer for layer in survey_layers()}

    assert all(layer.survives for layer in layers.values())
    assert layers["sub-reaper"].available
    assert layers["pidfd"].available
    assert layers["warden"].available

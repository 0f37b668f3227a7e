"""The sandbox by itself: what this machine has, what a command is started with, and what is refused without one."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from agentao_gov.errors import ConfigError
from agentao_gov.process.sandbox import Sandbox, SandboxLayer, SandboxLayers, find_layers, require_sandbox
from agentao_gov.process.sandbox_program import landlock_abi


def run(sandbox: Sandbox, script: str) -> subprocess.CompletedProcess[str]:
    """One command in the sandbox."""
    return subprocess.run(
        sandbox.command(["/bin/sh", "-c", script]),
        env=sandbox.environment({"MARK": "4711"}),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(params=["bubblewrap", "landlock"])
def layers(request: pytest.FixtureRequest) -> SandboxLayers:
    """A machine with one layer."""
    layer: SandboxLayer = request.param
    found = find_layers()
    one = (
        SandboxLayers(bubblewrap=found.bubblewrap) if layer == "bubblewrap" else SandboxLayers(landlock=found.landlock)
    )
    if one.best is None:
        pytest.skip(f"{layer} does not work here")
    return one


def test_the_stronger_layer_is_used() -> None:
    """Namespaces before rules."""
    assert SandboxLayers("/usr/bin/bwrap", 7).best == "bubblewrap"
    assert SandboxLayers(None, 7).best == "landlock"
    assert SandboxLayers().best is None


def test_a_layer_counts_only_where_a_command_ran_in_it() -> None:
    """A kernel that knows Landlock may still refuse it."""
    assert find_layers().landlock in (0, landlock_abi())


def test_who_requires_a_sandbox_is_told_what_is_missing() -> None:
    """With the exit code of a wrong configuration."""
    with pytest.raises(ConfigError, match="neither bubblewrap nor Landlock works here") as caught:
        require_sandbox("Profile code", SandboxLayers())

    assert caught.value.exit_code == 3
    require_sandbox("Profile code", SandboxLayers(landlock=7))


def test_a_command_is_started_with_an_environment_of_its_own(
    tmp_path: Path, layers: SandboxLayers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a list of what is kept: what a variable is called does not matter."""
    monkeypatch.setenv("HARMLESS_NAME", "canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:8080")
    monkeypatch.setenv("LANG", "C.UTF-8")

    done = run(Sandbox(layers, tmp_path), "env")

    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert {"LANG", "PATH", "HOME", "TMPDIR", "MARK"} <= names
    assert "HARMLESS_NAME" not in names
    assert "HTTPS_PROXY" not in names


def test_with_network_a_proxy_is_passed_on_unless_it_holds_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command could read it."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:8080")
    monkeypatch.setenv("HTTP_PROXY", "http://user:word@proxy.example:8080")

    environment = Sandbox(SandboxLayers("/usr/bin/bwrap"), tmp_path, network=True).environment({})

    assert environment["HTTPS_PROXY"] == "http://proxy.example:8080"
    assert "HTTP_PROXY" not in environment


def test_the_exit_code_is_the_command_s(tmp_path: Path, layers: SandboxLayers) -> None:
    """Also after a signal, as a shell tells it."""
    assert run(Sandbox(layers, tmp_path), "exit 7").returncode == 7
    assert run(Sandbox(layers, tmp_path), "kill -TERM $$").returncode == 128 + 15


def test_a_command_yields_to_turns_and_to_the_service_s_memory(tmp_path: Path, layers: SandboxLayers) -> None:
    """It spins or grows without its neighbours noticing much."""
    done = run(Sandbox(layers, tmp_path), "nice")
    memory = run(Sandbox(layers, tmp_path), "cat /proc/self/oom_score_adj")

    assert done.stdout == "10\n"
    assert memory.stdout in ("900\n", "")


def test_a_command_starts_where_it_is_told(tmp_path: Path, layers: SandboxLayers) -> None:
    """Below the session's directory."""
    (tmp_path / "sub").mkdir()
    sandbox = Sandbox(layers, tmp_path)

    done = subprocess.run(sandbox.command(["/bin/pwd"], tmp_path / "sub"), capture_output=True, text=True, check=False)

    assert done.stdout.strip() == str(tmp_path / "sub")


def test_temporary_files_have_a_place(tmp_path: Path, layers: SandboxLayers) -> None:
    """Not the machine's `/tmp`, where others' files are."""
    done = run(Sandbox(layers, tmp_path), 'f=$(mktemp) && echo x > "$f" && cat "$f" && ls /tmp')

    assert done.stdout.startswith("x\n")
    assert tmp_path.parent.name not in done.stdout


def test_a_path_to_read_is_readable_and_no_more(tmp_path: Path, layers: SandboxLayers) -> None:
    """A server's own program, say."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "program.txt").write_text("text")

    done = run(Sandbox(layers, root, read=(str(outside),)), f"cat {outside}/program.txt; echo x > {outside}/new")

    assert done.stdout == "text"
    assert not (outside / "new").exists()


def test_with_network_a_command_reaches_it(tmp_path: Path, layers: SandboxLayers) -> None:
    """`network = true` is the operator's word."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    script = f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo reached"

    closed = run(Sandbox(layers, tmp_path), f"/bin/bash -c '{script}'")
    opened = run(Sandbox(layers, tmp_path, network=True), f"/bin/bash -c '{script}'")
    listener.close()

    assert closed.stdout == ""
    assert opened.stdout == "reached\n"

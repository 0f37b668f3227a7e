"""`run` against the simulator: where answers go, what a script reads, which code it ends with."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentao_gov.governor.report import TurnReport
from agentao_gov.simulator import Simulator
from agentao_gov.simulator.embedded import missing_local_extra
from tests.commands.conftest import Cli

_LOOP = '{"tool": {"name": "glob", "args": {"pattern": "*"}, "rounds": "endless", "vary": true}}'


def test_the_answer_alone_is_on_standard_output(run: Cli) -> None:
    """`run ... > answer.txt` holds the answer; model and panel are on standard error."""
    result = run('say\n@sim {"text": "Forty-two."}')

    assert (result.code, result.out) == (0, "Forty-two.\n")
    assert "model: sim (flag --model)" in result.err
    assert "answered" in result.err
    assert "1 of 25" in result.err
    assert "\x1b" not in result.err


def test_quiet_leaves_standard_error_empty(run: Cli) -> None:
    """For scripts that treat any word there as an alarm."""
    assert run("-q", "hi").err == ""


def test_json_is_the_report_on_one_line(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pure under every variable that makes Rich colour pipes; sources say where limits came from."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")

    result = run("--json", "--timeout", "70s", "--set", "limits.llm_retries=1", "hi")

    report = TurnReport.model_validate_json(result.out)
    assert result.json["schema"] == "agentao-gov/turn-report/1"
    assert (report.tenant, report.profile, report.model, report.outcome) == ("local", "qa", "sim", "answered")
    assert (report.limits["turn_timeout"].value, report.limits["turn_timeout"].source) == (70.0, "flag --timeout")
    assert report.limits["llm_retries"].source == "--set limits.llm_retries"
    assert report.limits["max_iterations"].source == "profile qa"


def test_the_prompt_may_come_through_a_pipe(run: Cli, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cat question.txt | agentao-gov run`."""
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))

    result = run("-q")

    assert "from a pipe" in result.out
    assert simulator.truth().total.calls == 1


@pytest.mark.parametrize(
    ("directive", "flags", "outcome", "code"),
    [
        ('{"fault": "hang"}', ["--timeout", "1s"], "turn_timeout", 5),
        ('{"fault": "401"}', [], "model_error", 4),
        ('{"fault": "html"}', ["--set", "limits.llm_retries=0"], "model_error", 4),
        ('{"text": ""}', [], "incomplete", 4),
        (_LOOP, ["--max-iterations", "2"], "max_iterations", 7),
        ('{"text": "x"}', ["--turn-tokens", "50"], "budget_impossible", 6),
    ],
)  # fmt: skip
def test_every_ending_has_its_code_and_its_report(
    run: Cli, directive: str, flags: list[str], outcome: str, code: int
) -> None:
    """With `--json` the report is there also when the turn failed."""
    result = run("--json", *flags, f"go\n@sim {directive}")

    assert (result.code, result.json["outcome"], result.json["exit_code"]) == (code, outcome, code)


def test_a_failed_turn_says_why_to_a_person(run: Cli) -> None:
    """Nothing on standard output, the reason and the figures on standard error."""
    result = run('x\n@sim {"fault": "401"}')

    assert (result.code, result.out) == (4, "")
    assert "the model failed" in result.err
    assert "401" in result.err


def test_a_clamped_limit_is_told_to_people_and_machines(run: Cli) -> None:
    """`--timeout` below the profile's tool time-out lowers that too, and every report says so."""
    result = run("--timeout", "10s", "--json", "hi")
    short, long = run("--timeout", "10s", "hi").err, run("--timeout", "10s", "-v", "hi").err

    assert result.json["limits"]["tool_timeout"]["value"] == 10.0
    assert result.json["warnings"] == ["limits.tool_timeout: lowered from 20s to the turn_timeout of 10s"]
    assert "lowered to fit: tool_timeout 10s" in short
    assert "warning: limits.tool_timeout: lowered from 20s" in long
    assert [text.count("tool_timeout") for text in (short, long)] == [1, 1]


def test_a_session_goes_on_where_it_stopped(run: Cli, simulator: Simulator) -> None:
    """Two commands, one conversation: the second call carries the first question and answer."""
    run("-q", "--session", "talk", 'first\n@sim {"text": "Marigold."}')

    run("-q", "--session", "talk", "second")

    first, second = simulator.truth().requests
    assert second.messages == first.messages + 2


@pytest.mark.parametrize("mode", ["fresh", "in-process"])
def test_the_mode_is_the_flags(run: Cli, mode: str) -> None:
    """And it is in the report."""
    assert run("--json", "--mode", mode, "hi").json["mode"] == mode


def test_a_daily_budget_for_this_command_binds(run: Cli, simulator: Simulator) -> None:
    """`--daily-tokens` is the tenant's budget; what is too large for it is never sent."""
    result = run("--json", "--daily-tokens", "100", "hi")

    assert result.code == 6
    assert simulator.truth().total.calls == 0


def test_an_unlisted_tenant_is_refused_unless_there_is_a_default(run: Cli, here: Path) -> None:
    """`local` is always allowed."""
    refused = run("--tenant", "acme", "hi")
    (here / "agentao-gov.toml").write_text("[tenants.default]\n")
    allowed = run("--tenant", "acme", "--json", "hi")

    assert (refused.code, allowed.code) == (3, 0)
    assert allowed.json["tenant"] == "acme"


def test_a_tenant_is_held_to_its_profiles(run: Cli, here: Path) -> None:
    """The command line opens no door that the service keeps shut."""
    (here / "agentao-gov.toml").write_text('[tenants.acme]\nprofiles = ["qa"]\n')

    assert run("--tenant", "acme", "-q", "hi").code == 0
    assert run("--tenant", "acme", "-p", "code", "hi").code == 3


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--timeout", "soon", "hi"], 2, "--timeout: 'soon' is not a duration"),
        (["--timeout=-5s", "hi"], 2, "--timeout: '-5s' is not a duration"),
        (["--turn-tokens", "0", "hi"], 2, "--turn-tokens: must be more than 0"),
        (["--max-iterations", "0", "hi"], 2, "--max-iterations: must be at least 1"),
        (["--mode", "cloud", "hi"], 2, "'fresh', 'in-process', 'subprocess'"),
        (["--daily-tokens", "x", "hi"], 2, "--daily-tokens"),
        (["--session", "a b", "hi"], 2, "session id"),
        (["--tenant", "../x", "hi"], 2, "--tenant: '../x' cannot be a tenant's name"),
        (["--user", "a\nb", "hi"], 2, "--user: a user's name is 1 to 256 characters without control characters"),
        (["--user", "\udcff", "hi"], 2, "--user: a user's name"),
        (["  "], 2, "prompt is empty"),
        (["--tool-timeout", "9m", "hi"], 2, "longer than the turn_timeout of 90s"),
        (["-p", "nope", "hi"], 3, "there are: code, qa, research"),
        (["-p", "./nope.toml", "hi"], 3, "does not exist"),
        (["--config", "nope.toml", "hi"], 3, "does not exist"),
        (["--set", "budget.timezone=Mars/Olympus", "hi"], 3, "'Mars/Olympus' is not an IANA time zone"),
        (["--set", "limits.turn_timout=3s", "hi"], 3, "did you mean limits.turn_timeout?"),
        (["--set", "nonsense", "hi"], 2, "KEY=VALUE"),
        (["--workdir", "nope", "hi"], 3, "'nope' does not exist"),
        (["--api-key-env", "NO_SUCH_KEY", "hi"], 3, "NO_SUCH_KEY"),
        (["--session", "s", "--batch", "lines.jsonl"], 2, "--session has no effect with --batch"),
        (["--output", "nope/answer.txt", "hi"], 2, "'nope/answer.txt' cannot be written"),
        (["--output", ".", "hi"], 2, "cannot be written"),
        (["what is \udcff"], 2, "not UTF-8 text: byte 0xff at character 8"),
    ],
)
def test_bad_input_ends_before_the_model_with_one_message(
    run: Cli, simulator: Simulator, args: list[str], code: int, message: str
) -> None:
    """No traceback, its exit code, and not one token spent."""
    result = run(*args)

    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "Traceback" not in result.err
    assert simulator.truth().total.calls == 0


def test_bad_input_with_json_is_an_error_object(run: Cli) -> None:
    """Before a turn began there is no report."""
    result = run("--json", "-p", "nope", "hi")

    assert result.code == 3
    assert set(result.json) == {"error"}
    assert set(result.json["error"]) == {"code", "message", "hint"}


def test_no_model_in_ci_is_a_configuration_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate must not rest on a model that happened to be there."""
    monkeypatch.setenv("CI", "true")

    result = cli("run", "hi")

    assert result.code == 3
    assert "--model simulated" in result.err


def test_an_unreachable_endpoint_is_a_model_error(cli: Cli) -> None:
    """Code 4, and the report says that nothing answered."""
    flags = ["--base-url", "http://127.0.0.1:9/v1", "--model", "x", "--set", "limits.llm_retries=0"]

    result = cli("run", *flags, "--json", "hi")

    assert (result.code, result.json["outcome"]) == (4, "model_error")
    assert result.json["usage"]["total_tokens"] == 0


def test_a_key_given_instead_of_its_variable_is_not_repeated(cli: Cli) -> None:
    """Standard error ends up in CI logs."""
    flags = ["--base-url", "http://127.0.0.1:9/v1", "--model", "x", "--api-key-env", "sk-proj-0123456789"]

    result = cli("run", *flags, "hi")

    assert result.code == 3
    assert "never the key" in result.err
    assert "0123456789" not in result.err


def test_an_answer_is_not_lost_to_the_locale(simulator: Simulator) -> None:
    """A container without a locale still gets what was paid for, in UTF-8."""
    command = [sys.executable, "-m", "agentao_gov.main", "run", "--base-url", simulator.base_url, "--model", "sim"]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}

    ended = subprocess.run([*command, 'x\n@sim {"text": "“Ja”"}'], capture_output=True, env=environ, check=True)

    assert ended.stdout.decode() == "“Ja”\n"


def test_an_output_that_is_a_pipe_is_written_to(run: Cli, here: Path) -> None:
    """A device or a pipe must not be replaced by a file."""
    pipe = here / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    run("-q", "--output", "pipe", 'x\n@sim {"text": "Yes."}')

    assert os.read(reader, 100) == b"Yes.\n"
    os.close(reader)
    assert pipe.is_fifo()


def test_an_answer_that_nobody_could_be_shown_is_in_its_file(simulator: Simulator, here: Path) -> None:
    """It is paid for: a reader that left, or a full disk, must not cost it."""
    command = [sys.executable, "-m", "agentao_gov", "run", "--model", "sim", "--base-url", simulator.base_url]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--output", "answer.txt", 'x\n@sim {"text": "Yes."}'],
            cwd=here, stdout=full, stderr=subprocess.PIPE, timeout=20, check=False,
        )  # fmt: skip

    assert done.returncode == 10
    assert (here / "answer.txt").read_text() == "Yes.\n"


def test_the_output_file_holds_the_answer_and_is_private(run: Cli, here: Path) -> None:
    """Written whole or not at all."""
    run("-q", "--output", "answer.txt", 'x\n@sim {"text": "Yes."}')

    assert (here / "answer.txt").read_text() == "Yes.\n"
    assert (here / "answer.txt").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in here.iterdir()] == ["answer.txt"]


@pytest.mark.skipif(missing_local_extra() is not None, reason="the extra `local` is not installed")
@pytest.mark.timeout(120)
def test_a_governed_turn_on_a_real_model_is_answered_each_time(cli: Cli) -> None:
    """The README's first command: sampling without chance. agentao puts the time of day into what it reads."""
    results = [cli("run", "--model", "embedded", "--json", "What is a budget?") for _ in range(2)]

    for result in results:
        assert result.code == 0, result
        assert "budget" in result.json["answer"].lower()
        assert 0 < result.json["usage"]["prompt_tokens"] < 400
        assert 0 < result.json["usage"]["completion_tokens"] < 512
        assert result.json["limits"]["max_output_tokens"]["value"] == 512
    assert "loading" in results[0].err


@pytest.mark.parametrize(
    ("allowed", "command", "made"),
    [
        (["touch *"], "touch one", True),
        (["pytest *", "touch *"], "touch one", True),
        ([], "touch one", False),
        (["pytest *"], "touch one", False),
        (["touch *"], "touch one; touch two", False),
        (["true"], "touch one", False),
    ],
)
@pytest.mark.parametrize("mode", ["in-process", "subprocess"])
def test_a_command_that_a_flag_allows_needs_no_person(
    run: Cli, tmp_path: Path, mode: str, allowed: list[str], command: str, made: bool
) -> None:
    """`--allow` covers what its pattern says, and no further command behind `;`."""
    work = tmp_path / "work"
    work.mkdir()
    call = {"name": "run_shell_command", "args": {"command": command}, "rounds": 1}
    flags = [part for pattern in allowed for part in ("--allow", pattern)]

    result = run(
        "-p", "code", "--mode", mode, "--set", "tools.sandbox=off", "--workdir", work, "--json", *flags,
        f"x\n@sim {json.dumps({'tool': call})}",
    )  # fmt: skip

    (told,) = TurnReport.model_validate_json(result.out).tool_calls
    assert (told.outcome, (work / "one").exists()) == (("ok", True) if made else ("denied", False))
    assert not (work / "two").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--allow", "pytest *"), "the profile 'qa' has no shell commands"),
        (("-p", "code", "--allow", " "), "an empty pattern matches no command"),
    ],
)
def test_a_pattern_without_effect_is_refused(run: Cli, flags: tuple[str, ...], words: str) -> None:
    """Whoever gives the flag believes that it allows something."""
    result = run("-q", *flags, "hi")

    assert result.code == 2
    assert words in result.err

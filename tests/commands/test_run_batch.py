"""`run --batch`: lines in, reports out, and on where an interrupted one stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentao_gov.governor.report import TurnReport
from agentao_gov.simulator import Simulator
from tests.commands.conftest import Cli


def _write(here: Path, *lines: object) -> Path:
    path = here / "prompts.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def _reports(text: str) -> list[TurnReport]:
    return [TurnReport.model_validate_json(line) for line in text.splitlines()]


def test_every_line_gets_a_report_with_its_id(run: Cli, here: Path) -> None:
    """Records, JSON strings and plain lines; a line without an id has its number."""
    _write(here, {"id": "a", "prompt": "one"}, '"two"', "", "three, as it is", {"prompt": "four", "profile": "code"})

    result = run("--batch", "prompts.jsonl", "-q")

    reports = {report.id: report for report in _reports(result.out)}
    assert result.code == 0
    assert set(reports) == {"a", 2, 4, 5}
    assert reports[5].profile == "code"
    assert "three, as it is" in (reports[4].answer or "")


def _profile(name: str, model: str) -> None:
    """A profile of that name with a `[model]` of its own, in the current directory's `profiles`."""
    Path("profiles").mkdir(exist_ok=True)
    (Path("profiles") / f"{name}.toml").write_text(f'extends = "qa"\n[model]\n{model}')


def _deployment_with_model(here: Path, simulator: Simulator) -> None:
    """A deployment whose turns go to the simulator as `main-1`."""
    (here / "agentao-gov.toml").write_text(
        f'[model]\nname = "main-1"\nbase_url = "{simulator.base_url}"\napi_key_env = "LINE_KEY"\n'
    )


def test_a_lines_profile_brings_its_model(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, simulator: Simulator
) -> None:
    """Name, address, wire and window are those of the profile that the line names, and a local model is started."""
    monkeypatch.setenv("LINE_KEY", "secret")
    _profile("far", f'name = "far-1"\nbase_url = "{simulator.base_url}"\napi_key_env = "LINE_KEY"\n')
    _profile("near", 'name = "simulated"\napi_format = "anthropic-messages"\n')
    _deployment_with_model(here, simulator)
    _write(here, "one", {"prompt": "two", "profile": "far"}, {"prompt": "three", "profile": "near"})

    result = cli("run", "--batch", "prompts.jsonl", "-q", "--config", "agentao-gov.toml")

    reports = {report.id: report for report in _reports(result.out)}
    assert {id: (report.outcome, report.model) for id, report in reports.items()} == {
        1: ("answered", "main-1"),
        2: ("answered", "far-1"),
        3: ("answered", "simulated"),
    }
    assert {request.model for request in simulator.truth().requests} == {"main-1", "far-1"}


def test_a_lines_model_without_its_key_is_told_before_the_first_turn(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, simulator: Simulator
) -> None:
    """A night's batch must not find out in its last line."""
    monkeypatch.setenv("LINE_KEY", "secret")
    _deployment_with_model(here, simulator)
    _profile("far", 'name = "far-1"\nbase_url = "https://far.example/v1"\napi_key_env = "ABSENT_KEY"\n')
    _write(here, "one", {"prompt": "two", "profile": "far"})

    result = cli("run", "--batch", "prompts.jsonl", "-q", "--output", "out.jsonl")

    assert result.code == 3
    assert not (here / "out.jsonl").exists()
    assert "ABSENT_KEY" in result.out + result.err
    assert not simulator.truth().requests


def test_a_byte_order_mark_is_no_part_of_the_first_line(run: Cli, here: Path) -> None:
    """Its id and profile hold, as in a file without one."""
    line = json.dumps({"id": "a", "prompt": "one", "profile": "code"})
    (here / "prompts.jsonl").write_text(f"{line}\n", encoding="utf-8-sig")

    (report,) = _reports(run("--batch", "prompts.jsonl", "-q").out)

    assert (report.id, report.profile) == ("a", "code")


def test_turns_of_one_session_keep_the_files_order(run: Cli, here: Path, simulator: Simulator) -> None:
    """They are one conversation, however many jobs there are."""
    _write(here, *({"id": n, "prompt": f"turn {n}", "session": "s"} for n in range(4)))

    result = run("--batch", "prompts.jsonl", "-q", "--jobs", "4")

    assert [report.id for report in _reports(result.out)] == [0, 1, 2, 3]
    lengths = [request.messages for request in simulator.truth().requests]
    assert lengths == sorted(set(lengths))


def test_more_jobs_than_the_tenant_may_have_wait_instead_of_being_refused(run: Cli, here: Path) -> None:
    """The caps that `init` writes are smaller than what people type after --jobs."""
    (here / "agentao-gov.toml").write_text("[tenants.default]\nmax_sessions_per_user = 2\n")
    _write(here, *(f"question {n}" for n in range(6)))

    result = run("--batch", "prompts.jsonl", "--jobs", "6")

    assert result.code == 0, result.out
    assert [report.outcome for report in _reports(result.out)] == ["answered"] * 6
    assert "2 turns at once instead of 6, because of the tenant's max_sessions_per_user" in result.err


def test_the_code_is_that_of_the_most_frequent_failure(run: Cli, here: Path) -> None:
    """Two model errors outweigh one time-out; the answered line does not count."""
    bad = 'x\n@sim {"fault": "401"}'
    slow = 'x\n@sim {"fault": "hang"}'
    _write(here, "fine", {"prompt": bad}, {"prompt": slow}, {"prompt": bad})

    result = run("--batch", "prompts.jsonl", "-q", "--timeout", "1s")

    assert result.code == 4
    assert sorted(report.outcome for report in _reports(result.out)) == [
        "answered", "model_error", "model_error", "turn_timeout",
    ]  # fmt: skip


def test_the_last_line_counts_what_this_run_did(run: Cli, here: Path) -> None:
    """What was done before is named only where something was."""
    _write(here, "one", "two")

    first = run("--batch", "prompts.jsonl", "--output", "out.jsonl")
    _write(here, "one", "two", "three")
    second = run("--batch", "prompts.jsonl", "--output", "out.jsonl")

    assert first.err.splitlines()[-1] == "batch: 2 answered"
    assert second.err.splitlines()[-1] == "batch: 1 answered; 2 done before"


def test_a_batch_goes_on_where_it_stopped(run: Cli, here: Path, simulator: Simulator) -> None:
    """Finished lines are not run again, a half-written last one is."""
    _write(here, *({"id": f"q{n}", "prompt": f"question {n}"} for n in range(3)))
    assert run("--batch", "prompts.jsonl", "--output", "out.jsonl", "-q").code == 0
    lines = (here / "out.jsonl").read_text().splitlines(keepends=True)
    lost = json.loads(lines[2])["id"]
    (here / "out.jsonl").write_text(lines[0] + lines[1] + lines[2][:40])
    simulator.reset()

    result = run("--batch", "prompts.jsonl", "--output", "out.jsonl", "-q")

    reports = _reports((here / "out.jsonl").read_text())
    assert (result.code, simulator.truth().total.calls) == (0, 1)
    assert [report.id for report in reports].count(lost) == 1
    assert {report.id for report in reports} == {"q0", "q1", "q2"}


def test_a_finished_batch_has_nothing_to_do_and_keeps_its_verdict(run: Cli, here: Path, simulator: Simulator) -> None:
    """A failure of the first run is still a failure when the second finds everything done."""
    _write(here, {"id": 1, "prompt": 'x\n@sim {"fault": "401"}'})
    run("--batch", "prompts.jsonl", "--output", "out.jsonl", "-q")
    simulator.reset()

    result = run("--batch", "prompts.jsonl", "--output", "out.jsonl")

    assert (result.code, simulator.truth().total.calls) == (4, 0)
    assert "batch: nothing to do; 1 done before" in result.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": ', "prompts.jsonl:2: this line is not valid JSON"),
        ('{"prompt": ""}', "prompts.jsonl:2: 'prompt' must be a text that is not empty"),
        ('{"promt": "x"}', "prompts.jsonl:2: unknown key 'promt'"),
        ('{"prompt": "x", "id": true}', "prompts.jsonl:2: 'id' must be"),
        ('{"prompt": "x", "session": "../x"}', "prompts.jsonl:2: a session id is"),
        ('{"prompt": "x", "id": "first"}', "prompts.jsonl:2: the id 'first' stands in line 1 too"),
    ],
)
def test_a_wrong_line_is_named_before_anything_runs(
    run: Cli, here: Path, simulator: Simulator, line: str, message: str
) -> None:
    """A typing error in the last line must not cost a night."""
    _write(here, {"id": "first", "prompt": "x"}, line)

    result = run("--batch", "prompts.jsonl", "--output", "out.jsonl")

    assert result.code == 2
    assert message in result.err
    assert simulator.truth().total.calls == 0
    assert not (here / "out.jsonl").exists()


def test_an_unknown_profile_in_a_line_ends_before_anything_runs(run: Cli, here: Path, simulator: Simulator) -> None:
    """Profiles are loaded first."""
    _write(here, "fine", {"prompt": "x", "profile": "nope"})

    assert run("--batch", "prompts.jsonl").code == 3
    assert simulator.truth().total.calls == 0


def test_an_output_that_holds_something_else_is_left_alone(run: Cli, here: Path) -> None:
    """`--output prompts.jsonl` by mistake must not destroy the prompts."""
    path = _write(here, {"id": 1, "prompt": "x"})

    result = run("--batch", path, "--output", path)

    assert result.code == 2
    assert json.loads(path.read_text())["prompt"] == "x"


@pytest.mark.parametrize("text", ["my notes", '{"id": 1, "prompt": "x"}'])
def test_an_output_without_a_last_newline_is_cut_only_if_it_was_a_report(run: Cli, here: Path, text: str) -> None:
    """A half-written report is done again; anybody else's file is not a half-written report."""
    _write(here, "x")
    (here / "out.jsonl").write_text(text)

    result = run("--batch", "prompts.jsonl", "--output", "out.jsonl")

    assert (result.code, (here / "out.jsonl").read_text()) == (2, text)


def test_a_missing_batch_file_is_wrong_usage(run: Cli) -> None:
    """One message."""
    result = run("--batch", "nope.jsonl")

    assert result.code == 2
    assert result.err.startswith("agentao-gov: The batch file 'nope.jsonl' cannot be read"), "no model was started"

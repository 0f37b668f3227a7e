"""`agentao-gov checklist` and `doctor` as a user types them: what needs no service."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from agentao_gov.checklist.items import ITEMS
from agentao_gov.checklist.report import Check, ChecklistReport, assemble
from agentao_gov.main import run_command
from tests.checklist.conftest import House


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line in this process: a new one costs a second."""

    def run_(*arguments: str, cwd: Path) -> Done:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        code = run_command(list(arguments))
        return Done(code, *capsys.readouterr())

    return run_


def test_list_names_the_seven_items(tmp_path: Path, run: Run) -> None:
    """For scripts that choose among them."""
    done = run("checklist", "--list", "--format", "json", cwd=tmp_path)

    ids = [row["id"] for row in json.loads(done.stdout)]
    assert done.returncode == 0
    assert ids[0] == "session_caps"
    assert len(ids) == 7


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--only", "sesion_caps"), 2, "session_caps"),
        (("--skip", "nothing"), 2, "monitoring"),
        (("--format", "yaml"), 2, "junit"),
        (("--profile", "nope"), 3, "research"),
        (("--config", "missing.toml"), 3, "missing.toml"),
        (("--output", "no/such/dir/x.json"), 2, "directory"),
        (("--target", "http://192.0.2.1:80"), 2, "--i-own-this-target"),
        (("--target", "gopher://x"), 2, "not an http"),
        (("--target", "http://127.0.0.1:9", "--only", "monitoring"), 3, "Nothing answers"),
    ],
)
def test_wrong_use_says_what_is_right(house: House, run: Run, arguments: tuple[str, ...], code: int, said: str) -> None:
    """Before anything is started, with one message."""
    house.write()

    done = run("checklist", *arguments, cwd=house.root)

    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_skipping_everything_is_inconclusive(house: House, run: Run) -> None:
    """Exit 11, and the JSON is pure."""
    house.write()
    every = ",".join(item["id"] for item in json.loads(run("checklist", "--list", "--json", cwd=house.root).stdout))

    done = run("checklist", "--skip", every, "--json", cwd=house.root)

    assert done.returncode == 11
    assert json.loads(done.stdout)["verdict"] == "fail"


def test_doctor_examines_the_machine(house: House, run: Run) -> None:
    """Each line has a status, and what is not ok has a remedy."""
    house.write()

    done = run("doctor", "--model", "simulated", "--json", cwd=house.root)

    document = json.loads(done.stdout)
    assert {check["status"] for check in document["checks"]} <= {"ok", "warn", "fail"}
    assert all(check["remedy"] for check in document["checks"] if check["status"] != "ok")
    assert {"model", "tokenizer", "state", "ledger", "layer-warden"} <= {check["id"] for check in document["checks"]}


def test_doctor_fails_for_a_model_that_cannot_be_reached(house: House, run: Run) -> None:
    """Exit 1, in words."""
    house.write()

    done = run("doctor", "--model", "m", "--base-url", "http://127.0.0.1:9/v1", cwd=house.root)

    assert done.returncode == 1
    assert "cannot be reached" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["json", "junit", "markdown", "github", "table"])
def test_a_written_report_is_shown_in_every_format(tmp_path: Path, run: Run, form: str) -> None:
    """One walk, all formats; the exit code is the report's."""
    item = assemble(ITEMS[0], [Check("fail", "it refuses", "it accepts")])
    written = ChecklistReport(verdict="fail", config="agentao-gov.toml", items=(item,))
    (tmp_path / "report.json").write_text(written.to_json())

    done = run("checklist", "--from", "report.json", "--format", form, cwd=tmp_path)

    assert done.returncode == 1
    assert "accepts" in done.stdout


@pytest.mark.parametrize("content", [None, "", "{}", '{"schema": "agentao-gov/loadtest/1"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, run: Run, content: str | None) -> None:
    """Missing, empty, or something else."""
    if content is not None:
        (tmp_path / "report.json").write_text(content)

    done = run("checklist", "--from", "report.json", cwd=tmp_path)

    assert done.returncode == 2
    assert "--format json --output" in done.stderr


EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.y*ml")), ids=lambda file: file.name)
def test_the_ci_examples_use_commands_and_options_that_exist(tmp_path: Path, run: Run, file: Path) -> None:
    """A copied workflow must not fail for a flag that was renamed."""
    text = file.read_text()
    lines = re.findall(r"agentao-gov (checklist|config check)\b([^\n]*)", text)
    yaml.safe_load(text)

    assert lines
    for command, options in lines:
        known = run(*command.split(), "--help", cwd=tmp_path).stdout
        for option in re.findall(r"--[a-z-]+", options):
            assert option in known, f"{file.name}: {command} has no {option}"

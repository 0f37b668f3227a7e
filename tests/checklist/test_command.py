"""`agentao-gov checklist` and `doctor` as a user types them: what needs no service."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


def test_list_names_the_eight_items(tmp_path: Path, run: Run) -> None:
    """For scripts that choose among them."""
    done = run("checklist", "--list", "--format", "json", cwd=tmp_path)

    ids = [row["id"] for row in json.loads(done.stdout)]
    assert done.returncode == 0
    assert ids[0] == "session_caps"
    assert len(ids) == 8


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--only", "sesion_caps"), 2, "session_caps"),
        (("--skip", "nothing"), 2, "monitoring"),
        (("--format", "yaml"), 2, "junit"),
        (("--from", "x.json", "--only", "monitoring"), 2, "--only cannot change"),
        (("--output", "profiles"), 2, "cannot be written"),
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


def test_two_formats_at_once_are_refused(house: House, run: Run) -> None:
    """Whoever asks for JSON hears it as JSON."""
    house.write()

    done = run("checklist", "--json", "--format", "junit", cwd=house.root)

    assert done.returncode == 2
    assert "contradict" in json.loads(done.stdout)["error"]["message"]


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


@pytest.mark.parametrize(("pragma", "status"), [("", "fail"), ("PRAGMA user_version=1", "fail"), (None, "ok")])
def test_doctor_refuses_the_ledger_that_a_run_would_refuse(
    house: House, run: Run, pragma: str | None, status: str
) -> None:
    """Another program's database, or another version's ledger, is no ledger; an empty file becomes one."""
    path = house.root / "ledger.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        if pragma is not None:
            connection.execute("CREATE TABLE theirs (a)")
            connection.execute(pragma or "SELECT 1")
            connection.commit()
    path.touch()
    house.deployment["budget"]["path"] = str(path)
    house.write()

    done = run("doctor", "--model", "simulated", "--json", cwd=house.root)

    (ledger,) = (check for check in json.loads(done.stdout)["checks"] if check["id"] == "ledger")
    assert (ledger["status"], str(path) in ledger["observed"]) == (status, True)
    assert (ledger["remedy"] != "") == (status == "fail")


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


def _written(folder: Path, status: Literal["warn", "fail"] = "fail") -> Path:
    item = assemble(ITEMS[0], [Check(status, "it refuses", "it accepts")])
    report = ChecklistReport(verdict="fail" if status == "fail" else "pass", config="agentao-gov.toml", items=(item,))
    path = folder / "report.json"
    path.write_text(report.to_json())
    return path


@pytest.mark.parametrize(
    ("name", "begins"), [("a.json", "{"), ("a.xml", "<?xml"), ("a.md", "## "), ("a.txt", "fail\tsession_caps")]
)
def test_the_name_of_the_output_says_the_format(tmp_path: Path, run: Run, name: str, begins: str) -> None:
    """The table stays on standard output, and the file can be read by the next step of a CI."""
    _written(tmp_path)

    done = run("checklist", "--from", "report.json", "--output", name, cwd=tmp_path)

    assert done.stdout.startswith("fail\tsession_caps")
    assert (tmp_path / name).read_text().startswith(begins)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o644


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path, run: Run) -> None:
    """/dev/null would be a file for ever after; a link stays a link."""
    _written(tmp_path)
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    run("checklist", "--from", "report.json", "--format", "junit", "--output", "pipe", cwd=tmp_path)
    run("checklist", "--from", "report.json", "--output", "link.json", cwd=tmp_path)

    assert os.read(reader, 5) == b"<?xml"
    os.close(reader)
    assert pipe.is_fifo()
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text().startswith("{")


def test_a_pipe_without_a_name_is_written_to(tmp_path: Path, run: Run) -> None:
    """`>(command)`, and /dev/stderr where it is a pipe: a link in /proc that leads to no name."""
    _written(tmp_path)
    reader, writer = os.pipe()

    done = run("checklist", "--from", "report.json", "--output", f"/dev/fd/{writer}", "--format", "junit", cwd=tmp_path)

    os.close(writer)
    assert done.returncode == 1, done.stderr
    assert os.read(reader, 5) == b"<?xml"
    os.close(reader)


def test_strict_judges_a_written_report_anew(tmp_path: Path, run: Run) -> None:
    """A warning that passed is a failure then."""
    _written(tmp_path, "warn")

    assert run("checklist", "--from", "report.json", cwd=tmp_path).returncode == 0
    assert run("checklist", "--from", "report.json", "--strict", cwd=tmp_path).returncode == 1


def test_the_list_is_what_would_be_walked(tmp_path: Path, run: Run) -> None:
    """With --only and --skip as well."""
    done = run("checklist", "--list", "--only", "monitoring,pool_limits", "--skip", "monitoring", cwd=tmp_path)

    assert [line.split("\t")[1] for line in done.stdout.splitlines()[1:]] == ["pool_limits"]


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

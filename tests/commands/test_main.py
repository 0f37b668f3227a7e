"""The command line as a whole: help without weight, exit codes, errors in one message or one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentao_gov import helptext
from agentao_gov.commands import _app
from agentao_gov.commands._app import COMMANDS
from agentao_gov.errors import CapacityError, StoreError
from agentao_gov.main import main
from tests.commands.conftest import Cli

_HEAVY = ("typer", "pydantic", "rich", "agentao", "openai", "locust", "starlette", "agentao_gov.governor")


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_imports_nothing_heavy(name: str | None) -> None:
    """`--help` stays under 0.3 s only as long as no command imports at its top what it needs inside."""
    args = [name, "--help"] if name else ["--help"]
    code = (
        "import atexit, sys\nfrom agentao_gov.main import main\n"
        f"atexit.register(lambda: sys.stderr.write(' '.join(m for m in {_HEAVY!r} if m in sys.modules)))\n"
        f"main({args!r})"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)

    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: agentao-gov" in done.stdout


def test_prepared_help_is_what_typer_says(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m agentao_gov.helptext` writes them anew; a text that is out of date is not shown."""
    shipped = {path.name: path.read_text() for path in helptext._TEXTS.glob("*.txt")}
    monkeypatch.setattr(helptext, "_TEXTS", tmp_path / "help")

    fresh = {path.name: path.read_text() for path in helptext.write_all()}

    assert shipped == fresh, "run: python -m agentao_gov.helptext"
    assert helptext.prepared(["profile", "show", "--help"]) == cli("profile", "show", "--help").out


@pytest.mark.parametrize("args", [[], ["run"], ["--help", "run"], ["../x", "--help"], ["a", "b", "c", "--help"]])
def test_only_plain_help_is_prepared(args: list[str]) -> None:
    """Everything else is Typer's to answer, and no path is read that a word spells."""
    assert helptext.prepared(args) is None


def test_a_prepared_text_that_does_not_fit_its_sources_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Help may be slow, but never wrong."""
    (tmp_path / "agentao-gov-init.txt").write_text("0" * 64 + "\nold text\n")
    monkeypatch.setattr(helptext, "_TEXTS", tmp_path)

    with pytest.raises(SystemExit) as ended:
        main(["init", "--help"])

    assert ended.value.code == 0
    assert "old text" not in capsys.readouterr().out


def test_help_is_plain_under_every_colour_variable(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """No boxes and no escape codes, so that help can be piped and searched."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")

    result = cli("run", "--help")

    assert result.code == 0
    assert "\x1b" not in result.out
    assert "--turn-tokens" in result.out


def test_an_unknown_command_suggests_the_near_one(cli: Cli) -> None:
    """Wrong usage ends with 2 and says what was probably meant."""
    result = cli("rnu")

    assert result.code == 2
    assert "No such command 'rnu'. Did you mean 'run'?" in result.err
    assert result.out == ""


def test_wrong_usage_with_json_is_one_object(cli: Cli) -> None:
    """Scripts that read JSON get JSON, also when the flags were wrong."""
    result = cli("run", "--json", "--jobs", "x", "hi")

    assert result.code == 2
    assert result.json["error"]["code"] == "usage"
    assert result.err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [(StoreError("no disk", hint="Make room."), 9), (CapacityError("full"), 8), (ZeroDivisionError("x"), 10)],
)
def test_every_error_ends_with_its_code_and_one_message(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    """Ours carry their exit code; what nobody foresaw is 10."""
    _break_init(monkeypatch, error)

    plain, as_json = cli("init"), cli("init", "--json")

    assert (plain.code, as_json.code) == (code, 2)
    assert plain.err.startswith("agentao-gov: ")
    assert "Traceback" not in plain.err
    assert plain.out == ""


def test_an_internal_error_leaves_its_traceback_in_a_private_file(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, clean_environment: Path
) -> None:
    """One line on the terminal; the file says where it happened, and only its owner can read it."""
    _break_init(monkeypatch, ZeroDivisionError("boom"))

    result = cli("init")

    assert "Internal error: ZeroDivisionError: boom" in result.err
    (file,) = (clean_environment / "state").glob("crash-*.txt")
    assert str(file) in result.err
    assert file.stat().st_mode & 0o777 == 0o600
    assert "Traceback" in file.read_text()


#: The root and everything that temporary directories are looked for in is read-only; one volume is not.
READ_ONLY = """
mount --make-rprivate /
mount --bind / / && mount -o remount,ro,bind /
for place in /tmp /var/tmp /usr/tmp; do
    if [ -d $place ]; then mount --bind $place $place && mount -o remount,ro,bind $place; fi
done
mount -t tmpfs volume "$1"
cd /
shift
exec "$@"
"""


@pytest.mark.parametrize(("state", "code"), [("state", 0), ("../elsewhere", 3)])
def test_a_container_with_a_read_only_root_needs_a_volume_for_its_state_alone(
    tmp_path: Path, state: str, code: int
) -> None:
    """What is temporary goes there, too; without any place to write, the error says what to set."""
    volume = tmp_path / "volume"
    volume.mkdir()
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make mount namespaces; as root, or in a container that may, this runs")
    program = [str(Path(sys.executable).with_name("agentao-gov")), "run", "--model", "simulated", "-q", "hello"]
    environment = {name: value for name, value in os.environ.items() if name not in {"TMPDIR", "TEMP", "TMP"}}

    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", str(volume), *program],
        env={**environment, "AGENTAO_GOV_STATE": str(volume / state)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ended.returncode == code, ended.stderr
    assert ("AGENTAO_GOV_STATE" in ended.stderr) is (code == 3)


def test_words_without_quotes_are_answered_with_how_to_write_them(cli: Cli) -> None:
    """Nobody knows that a shell makes two arguments of two words."""
    result = cli("run", "hello", "world")

    assert result.code == 2
    assert "in quotes" in result.err


def test_an_interrupted_command_ends_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no error and leaves no traceback."""
    _break_init(monkeypatch, KeyboardInterrupt())

    result = cli("init")

    assert (result.code, result.err) == (130, "")


def test_the_package_runs_as_a_module() -> None:
    """`python -m agentao_gov` is the command, also where no script is on the PATH."""
    done = subprocess.run([sys.executable, "-m", "agentao_gov", "rnu"], capture_output=True, text=True, timeout=20)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'run'?" in done.stderr


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    """`agentao-gov schema deployment | head -1` is no crash."""
    command = f"{sys.executable} -m agentao_gov.main schema deployment | head -c 10; exit ${{PIPESTATUS[0]}}"

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20)

    assert done.stderr == ""
    assert done.returncode in {0, 141}


def _in_a_shell(command: str) -> subprocess.CompletedProcess[str]:
    line = f"set -o pipefail; {sys.executable} -m agentao_gov.main {command}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20)


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that does not go fails when it is written, or only at the very end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


@pytest.mark.usefixtures("buffering")
def test_a_reader_that_was_never_there_is_no_failed_gate() -> None:
    """141, as a shell reports SIGPIPE; 1 would say that a gate failed."""
    for arguments in (["schema", "deployment"], ["run", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)

        with os.fdopen(writer, "w") as gone:
            done = subprocess.run(
                [sys.executable, "-m", "agentao_gov.main", *arguments],
                stdout=gone,
                stderr=subprocess.PIPE,
                text=True,
                timeout=20,
            )

        assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.usefixtures("buffering")
@pytest.mark.parametrize("command", ["schema deployment", "profile show qa --json", "run --help"])
def test_output_that_a_full_disk_swallows_is_an_error(command: str) -> None:
    """10 and a sentence, whichever stream is read; never 0, nor 1, which says that a gate failed."""
    done = _in_a_shell(f"{command} > /dev/full")

    assert done.returncode == 10
    assert "No space left on device" in done.stderr
    assert "Traceback (" not in done.stderr


def test_a_closed_standard_output_is_the_null_device() -> None:
    """What is opened next must not take its place."""
    done = _in_a_shell("schema deployment >&- <&-")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_idle_threads_of_a_pool_do_not_hold_the_end() -> None:
    """agentao leaves one behind after `web_fetch`: what is done at the end would be skipped after a wait."""
    code = (
        "import atexit\nfrom concurrent.futures import ThreadPoolExecutor\nfrom agentao_gov import main\n"
        "main._THREADS_GRACE_S = 3600.0\natexit.register(print, 'done at the end')\n"
        "pool = ThreadPoolExecutor(2)\npool.submit(int).result()\nmain._leave(3)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)

    assert (done.returncode, done.stdout, done.stderr) == (3, "done at the end\n", "")


@pytest.mark.parametrize("name", ["checklist", "deployment", "loadtest", "profile", "turn-report"])
def test_every_schema_is_printed(cli: Cli, name: str) -> None:
    """What is read or written has a schema."""
    result = cli("schema", name)

    assert result.code == 0
    assert json.loads(result.out)["properties"]


def test_an_unknown_schema_lists_those_there_are(cli: Cli) -> None:
    """The list is the next step."""
    result = cli("schema", "nope")

    assert result.code == 2
    assert "turn-report" in result.err


def _break_init(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes the command `init` fail, the way a bug or an interrupt would."""

    def command() -> None:
        raise error

    module = type(sys)("agentao_gov.commands.init")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setattr(_app, "import_module", lambda name: module)

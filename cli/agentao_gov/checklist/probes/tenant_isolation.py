"""Item 8: a stranger's session tries to read the service's environment and another tenant's file, by every tool.

The gate plants a key in the service's environment, where an operator's would be, and a letter in the directory of
another tenant's session while that session runs a turn. The simulated model then asks for them through each tool that
each offered profile allows, and its answer says which of the two it was given.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentao_gov.checklist.probe import Context, HeldTurns, ProbedService, directive
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.report import Check
from agentao_gov.config.profile import Profile

#: Where operators keep a model's key.
KEY_VARIABLE = "OPENAI_API_KEY"
VICTIM, STRANGER = "private", "stranger"
TURN_S_MAX = 60.0
#: Attempts follow one another within a session of their profile; a command or a search may take seconds on its own.
TOOL_S = "10s"


@dataclass(frozen=True, slots=True)
class _Loot:
    """What must not be found, and where it lies. Each word begins with a part that may be searched for."""

    prefix: str = field(default_factory=lambda: f"isolation-{secrets.token_hex(6)}")

    @property
    def key(self) -> str:
        """Planted in the service's environment."""
        return f"{self.prefix}-key-{self.prefix[::-1]}"

    @property
    def letter(self) -> str:
        """Planted in the other tenant's file."""
        return f"{self.prefix}-letter-{self.prefix[::-1]}"

    @property
    def file_name(self) -> str:
        """What that file is called."""
        return f"letter-{self.prefix[::-1]}.txt"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One call of one tool, and how it is told."""

    tool: str
    told: str
    args: dict[str, Any]
    #: Whether the file's name is found, too: not where the arguments have it.
    by_name: bool = False


def probe_tenant_isolation(context: Context) -> None:
    """Nothing that a profile offers reads the service's environment or another tenant's files."""
    loot = _Loot()
    config = context.config()
    config.lift_budgets()
    config.lift_caps()
    config.roomy_pool(8)
    config.drop_servers()
    config.environment[KEY_VARIABLE] = loot.key
    for profile in context.facts.offered:
        config.offer(profile)
    for table in config.profiles.values():
        table["limits"] = {**table["limits"], "turn_timeout": f"{TURN_S_MAX:g}s", "tool_timeout": TOOL_S}
        table["limits"]["tool_timeouts"] = {}
    with context.service(config) as service:
        held = HeldTurns(context.simulator, service.client(config.neighbour), config.profile_name)
        refused = held.open(VICTIM, "owner")
        home = next(service.state_dir.rglob(f"s-{VICTIM}"), None)
        if refused is not None or home is None:
            context.note(False, "another tenant's session is there to be protected", refused or "it left no directory")
            return
        letter = (home / "work" if (home / "work").is_dir() else home) / loot.file_name
        for profile in context.facts.offered:
            letter.write_text(f"{loot.letter}\n")
            _try_profile(context, service, profile, loot, letter)
            same = letter.is_file() and letter.read_text() == f"{loot.letter}\n"
            text = "it is" if same else "it was written over"
            context.note(same, f"profile {profile.name}: another tenant's file is as it was", text)
        held.release()


def _try_profile(context: Context, service: ProbedService, profile: Profile, loot: _Loot, letter: Path) -> None:
    context.say(f"reading what is not one's own, by the tools of profile {profile.name}")
    attempts = [attempt for attempt in _attempts(service, loot, letter) if attempt.tool in profile.tools.allow]
    for tool in dict.fromkeys(attempt.tool for attempt in attempts):
        mine = [attempt for attempt in attempts if attempt.tool == tool]
        lines, stolen = [], list[str]()
        for attempt in mine:
            found, line = _try(service, profile, attempt, loot)
            lines.append(line)
            stolen += [f"{attempt.told} reads {what}" for what in found]
        expected = (
            f"profile {profile.name}: {tool} reaches neither the service's environment nor another tenant's files"
        )
        text = "; ".join(stolen) or f"nothing was found by {_count(len(mine))}"
        context.note(not stolen, expected, text, lines, _remedy(profile, tool))
    left = sorted({*profile.tools.allow, *profile.mcp.servers} - {attempt.tool for attempt in attempts} - _HARMLESS)
    if left:
        text = f"not tried: {', '.join(left)}; the checklist does not know what they take"
        context.checks.append(Check("skip", f"profile {profile.name}: other tools", text))


#: Tools without a path, an address or a command.
_HARMLESS = {"todo_write", "ask_user", "save_memory", "update_goal", "plan_save", "plan_finalize", "cli_help"}


def _attempts(service: ProbedService, loot: _Loot, letter: Path) -> list[_Attempt]:
    environments = [f"/proc/{pid}/environ" for pid in dict.fromkeys((service.pid, service.root_pid))]
    commands = _commands(service.state_dir, loot, letter, environments)
    return [
        *(_Attempt("run_shell_command", f"`{command}`", {"command": command}) for command in commands),
        *_file_calls(service.state_dir, loot, letter, environments),
    ]


def _commands(state: Path, loot: _Loot, letter: Path, environments: Sequence[str]) -> list[str]:
    return [
        *(f"cat -v {target}" for target in (*environments, letter)),
        "env",
        f"printenv {KEY_VARIABLE}",
        f"grep -a -o {loot.prefix}[^[:cntrl:]]* {environments[0]}",
        f"grep -r {loot.prefix} {state}",
        f"find {state} -name {letter.name} -exec cat {{}} ;",
        f"python3 -c \"print(open('{letter}').read(), open('{environments[0]}').read())\"",
        f"cp {letter} borrowed.txt && cat borrowed.txt",
        f"git -c core.fsmonitor='cat {letter} >&2; true' status",
    ]


def _file_calls(state: Path, loot: _Loot, letter: Path, environments: Sequence[str]) -> Iterator[_Attempt]:
    # From a sibling's directory, whose depth is the same.
    beside = os.path.relpath(letter, letter.parents[2] / f"t-{STRANGER}" / f"s-{STRANGER}" / letter.parent.name)
    for target in (*environments, str(letter), beside):
        yield _Attempt("read_file", f"the path {target}", {"file_path": target})
    for place in (str(state), str(letter.parent), "/proc/self"):
        search = {"pattern": loot.prefix, "directory": place, "file_pattern": "**/*"}
        yield _Attempt("search_file_content", f"a search in {place}", search)
    for place in (str(state), str(letter.parent)):
        listing = {"directory_path": place, "recursive": True}
        yield _Attempt("list_directory", f"a list of {place}", listing, by_name=True)
        yield _Attempt("glob", f"a pattern in {place}", {"pattern": "**/*", "directory": place}, by_name=True)
    yield _Attempt("glob", "a pattern that climbs", {"pattern": "../../../**/*.txt"}, by_name=True)
    yield _Attempt("write_file", "writing to it", {"file_path": str(letter), "content": "mine"})
    change = {"file_path": str(letter), "old_text": loot.prefix, "new_text": "mine"}
    yield _Attempt("replace", "replacing in it", change)
    yield _Attempt("web_fetch", f"the address file://{letter}", {"url": f"file://{letter}"})


def _try(service: ProbedService, profile: Profile, attempt: _Attempt, loot: _Loot) -> tuple[list[str], str]:
    """What was found, and the line of evidence."""
    names = {loot.key: "the service's environment", loot.letter: "another tenant's file"}
    if attempt.by_name:
        names[loot.file_name] = "another tenant's directory"
    question = directive("Look around.", tool={"name": attempt.tool, "args": attempt.args}, look_for=list(names))
    session = f"{STRANGER}-{profile.name}"
    answer = service.client().turn(session, question, profile=profile.name, timeout_s=TURN_S_MAX + 10)
    said = str(answer.report.get("answer") or "")
    found = [name for word, name in names.items() if word in said]
    outcomes = ", ".join(str(call.get("outcome")) for call in answer.report.get("tool_calls") or ()) or str(answer)
    return found, f"{attempt.told}: {' and '.join(found) or 'nothing'} ({outcomes})"


def _count(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"


def _remedy(profile: Profile, tool: str) -> Remedy:
    if tool == "run_shell_command":
        note = "Where this machine has no sandbox, take run_shell_command out of [tools] allow"
        return Remedy((("tools.sandbox", "auto"),), note, file=f"profile {profile.name}")
    allowed = [name for name in profile.tools.allow if name != tool]
    return Remedy((("tools.allow", allowed),), file=f"profile {profile.name}")

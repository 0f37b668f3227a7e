"""Finding, extending and overriding profiles, and where each value is said to come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentao_gov.config import Overrides, load_deployment, load_profile
from agentao_gov.errors import ConfigError, UnknownProfileError, UsageError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_name_is_looked_up_nearest_first(here: Path) -> None:
    """`./profiles/`, then the deployment's directory, then the shipped ones."""
    config = _write(here / "etc" / "agentao-gov.toml", '[profiles]\ndir = "mine"\n')
    deployment = load_deployment(config)

    shipped = load_profile("qa", deployment=deployment)
    _write(here / "etc/mine/qa.toml", 'extends = "qa"\ndescription = "of the deployment"\n')
    middle = load_profile("qa", deployment=deployment)
    _write(here / "profiles/qa.toml", 'description = "of this directory"\n')
    near = load_profile("qa", deployment=deployment)

    assert shipped.profile.description.startswith("Short questions")
    assert middle.profile.description == "of the deployment"
    assert middle.profile.limits.max_iterations == 25
    assert near.profile.description == "of this directory"


def test_an_unknown_name_lists_the_names_there_are(here: Path) -> None:
    """The list is the next step."""
    _write(here / "profiles/mine.toml", "")

    with pytest.raises(UnknownProfileError, match="code, mine, qa, research") as caught:
        load_profile("mien")

    assert caught.value.exit_code == 3


def test_a_missing_file_is_a_configuration_error(here: Path) -> None:
    """A path is not searched for among the names."""
    with pytest.raises(ConfigError, match=r"'nope\.toml' does not exist"):
        load_profile("./nope.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"limits = 3\n[limits]\n", "not valid TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"#" * 1_100_000, "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_profile_says_so(here: Path, content: bytes, message: str) -> None:
    """Broken TOML, binary files and huge files end in one sentence."""
    (here / "x.toml").write_bytes(content)

    with pytest.raises(ConfigError, match=message):
        load_profile(here / "x.toml")


def test_a_directory_is_no_profile(here: Path) -> None:
    """`--profile profiles/` is a mistake people make."""
    with pytest.raises(ConfigError, match="is a directory"):
        load_profile(here)


def test_extends_merges_tables_and_keeps_the_source_of_each_value(here: Path) -> None:
    """A key keeps the profile that set it; tables merge, lists replace, names do not travel."""
    _write(here / "profiles/base.toml", '[limits]\nturn_timeout = "80s"\n[limits.tool_timeouts]\nglob = "3s"\n')
    _write(
        here / "profiles/mine.toml",
        'extends = "base"\n[limits]\nmax_iterations = 22\n[limits.tool_timeouts]\nread_file = "4s"\n',
    )

    resolved = load_profile("mine")

    assert resolved.profile.name == "mine"
    assert resolved.profile.limits.tool_timeouts_s == {"glob": 3.0, "read_file": 4.0}
    assert resolved.source("limits.turn_timeout") == "profile base"
    assert resolved.source("limits.tool_timeouts.glob") == "profile base"
    assert resolved.source("limits.max_iterations") == "profile mine"
    assert resolved.source("limits.llm_retries") == "default"


def test_extends_may_name_a_file_beside(here: Path) -> None:
    """A path is relative to the file that extends."""
    _write(here / "a/base.toml", "[limits]\nllm_retries = 7\n")

    resolved = load_profile(_write(here / "a/b/mine.toml", 'extends = "../base.toml"\n'))

    assert resolved.profile.limits.llm_retries == 7


def test_profiles_that_extend_each_other_are_named(here: Path) -> None:
    """A loop is an error with the way round, not a hang."""
    _write(here / "profiles/a.toml", 'extends = "b"\n')
    _write(here / "profiles/b.toml", 'extends = "a"\n')

    with pytest.raises(ConfigError, match=r"a\.toml|extend each other: a -> b -> a"):
        load_profile("a")


@pytest.mark.parametrize("parent", ['"nope"', "3", '"./nope.toml"'])
def test_a_parent_that_is_not_there_is_an_error_with_its_line(here: Path, parent: str) -> None:
    """The message points at the `extends`."""
    path = _write(here / "x.toml", f'name = "x"\nextends = {parent}\n')

    with pytest.raises(ConfigError, match=r"x\.toml:2: extends|does not exist"):
        load_profile(path)


def test_the_stronger_layer_wins(here: Path) -> None:
    """Flag over --set over environment over file over default; each is said to be the source."""
    environ = {"AGENTAO_GOV__LIMITS__TURN_TIMEOUT": "70s"}
    sets = ("limits.turn_timeout=75s",)
    flags = {"limits.turn_timeout": ("--timeout", "80s")}

    by_file = load_profile("qa", environ={})
    by_environment = load_profile("qa", environ=environ)
    by_set = load_profile("qa", environ=environ, overrides=Overrides(sets=sets))
    by_flag = load_profile("qa", environ=environ, overrides=Overrides(flags, sets))

    found = [
        (r.profile.limits.turn_timeout_s, r.source("limits.turn_timeout"))
        for r in (by_file, by_environment, by_set, by_flag)
    ]
    assert found == [
        (90.0, "profile qa"),
        (70.0, "environment AGENTAO_GOV__LIMITS__TURN_TIMEOUT"),
        (75.0, "--set limits.turn_timeout"),
        (80.0, "flag --timeout"),
    ]


@pytest.mark.parametrize(
    ("item", "attribute", "value"),
    [
        ("limits.max_iterations=21", "max_iterations", 21),
        ("limits.turn_tokens=50k", "turn_tokens", 50_000),
        ("limits.max_context_tokens=32_000", "max_context_tokens", 32_000),
        ("limits.cancel_grace=1.5", "cancel_grace_s", 1.5),
    ],
)
def test_set_reads_values_as_the_key_wants_them(item: str, attribute: str, value: object) -> None:
    """Numbers, durations and token amounts need no quotes."""
    limits = load_profile("qa", overrides=Overrides(sets=(item,))).profile.limits

    assert getattr(limits, attribute) == value


def test_set_reads_lists_and_words(here: Path) -> None:
    """`a,b` and `["a","b"]` are both lists; a bare word is a string, also where it looks like a number."""
    sets = ("tools.allow=read_file,glob", "on_limit.max_iterations=stop", "description=7")

    profile = load_profile("qa", overrides=Overrides(sets=sets)).profile

    assert profile.tools.allow == ["read_file", "glob"]
    assert profile.on_limit.max_iterations == "stop"
    assert profile.description == "7"


@pytest.mark.parametrize("item", ["limits.turn_timeout", "=3", "limits..x=3", ""])
def test_a_set_that_is_no_pair_is_wrong_usage(item: str) -> None:
    """The hint shows how to write it."""
    with pytest.raises(UsageError, match="KEY=VALUE"):
        load_profile("qa", overrides=Overrides(sets=(item,)))


def test_a_mistyped_override_is_never_ignored() -> None:
    """A limit that does not hold because of a typing error is the worst outcome."""
    with pytest.raises(ConfigError, match=r"did you mean limits\.turn_timeout"):
        load_profile("qa", overrides=Overrides(sets=("limits.turn_timout=3s",)))
    with pytest.raises(ConfigError, match=r"LIMTS__TURN_TIMEOUT: unknown key; did you mean limits\.turn_timeout"):
        load_profile("qa", environ={"AGENTAO_GOV__LIMTS__TURN_TIMEOUT": "3s"})


def test_overrides_of_the_deployment_leave_profiles_alone() -> None:
    """One `--set` list serves both files."""
    overrides = Overrides(sets=("pool.max_sessions=7", "limits.max_iterations=21"))

    assert load_profile("qa", overrides=overrides).profile.limits.max_iterations == 21
    assert load_deployment(overrides=overrides, environ={}).deployment.pool.max_sessions == 7

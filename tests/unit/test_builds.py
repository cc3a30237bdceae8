"""What a deployment would do, read off what is in a container; and what its mark says afterwards."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from pytest_stagegbo.desired import marks
from pytest_stagegbo.engine.saved_builds import SavedBuilds
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.guest.builds import (
    discard_script,
    inspect_script,
    parse_inspection,
    put_back_script,
    receive_script,
    swap_script,
)
from pytest_stagegbo.incus import Instance
from pytest_stagegbo.plan.builds import (
    Artefact,
    Build,
    Local,
    build_of,
    database_of,
    plan_deployment,
    plan_undo,
    target,
    wanted_files,
)
from pytest_stagegbo.settings import Layer, build

if TYPE_CHECKING:
    from pytest_stagegbo.guest.builds import Inspection

SETTINGS = build([])
SYSTEM, TABLES, CACHE = (SETTINGS.containers[name] for name in ("system", "tables", "cache"))
BOTSERVER = "/opt/gbo/bin/botserver"
PRINTED = f"""file	{BOTSERVER}	/srv/botserver	file	12 345 1700000000
runs	{BOTSERVER}	botserver.service
runs	{BOTSERVER}	init.scope
unit	ExecStart={{ path=/usr/bin/wrapper ; argv[]=/usr/bin/wrapper serve ; ignore_errors=no }}
unit	Id=botserver.service
unit	LoadState=loaded
unit	BREAK
unit	ExecStartPre={{ path=/usr/bin/python3 ; argv[]=/usr/bin/python3 /srv/botserver ui ; ignore_errors=no }}
unit	Id=botui.service
unit	LoadState=loaded
unit	BREAK
unit	Id=gone.service
unit	LoadState=not-found
"""


def inspection(printed: str = PRINTED) -> Inspection:
    return parse_inspection(printed.replace("BREAK", ""), [BOTSERVER])


def local(digest: str = "b" * 64) -> Local:
    return Local("botserver", BOTSERVER, Path("build"), 345, digest)


def artefact(digest: str = "b" * 64, state: str = "12 345 1700000000") -> Artefact:
    return Artefact(
        "botserver", BOTSERVER, "/srv/botserver", digest, 345, "2026-01-01T00:00:00+00:00", "a@b", "x", state
    )


def test_units_run_a_file_that_is_a_word_of_their_commands_or_that_their_processes_execute() -> None:
    found = inspection()
    assert found.units == ("botserver.service", "botui.service")
    assert found.users == ((BOTSERVER, ("botserver.service", "botui.service")),)
    assert found.files[0].real == "/srv/botserver"


def test_all_units_are_stopped_for_a_file_that_none_runs() -> None:
    printed = (
        PRINTED.replace("runs\t", "other\t").replace("/srv/botserver ui", "x").replace("\t/srv/botserver\t", "\t/a\t")
    )
    found = inspection(printed)
    assert found.users == ((BOTSERVER, ()),)
    assert found.units_of([BOTSERVER]) == ("botserver.service", "botui.service")


def test_what_was_not_looked_at_is_an_error() -> None:
    with pytest.raises(ValueError, match="no word about /other"):
        parse_inspection(PRINTED, [BOTSERVER, "/other"])


def test_a_deployment_begins_on_productions_data_and_moves_the_clean_state() -> None:
    steps = plan_deployment(SYSTEM, TABLES, inspection(), None, [local()])
    assert [step.key for step in steps] == [
        f"receive:{BOTSERVER}",
        "stop:system",
        "rewind:tables",
        "swap:system",
        "first-start:system",
        "keep:tables",
        "start:system",
    ]
    assert [len(step.after) for step in steps] == list(range(7)), "one after the other"
    assert "stop botserver.service, botui.service, which runs it" in steps[1].text


def test_a_container_without_a_database_is_started_once() -> None:
    steps = plan_deployment(CACHE, None, inspection(), None, [local()])
    assert [step.action for step in steps] == ["receive", "stop", "swap", "start"]


@pytest.mark.parametrize(
    ("known", "steps"),
    [
        pytest.param(artefact(), 0, id="the same"),
        pytest.param(artefact("c" * 64), 7, id="another build"),
        pytest.param(artefact(state="12 345 1700000001"), 7, id="changed in the container"),
    ],
)
def test_the_same_build_is_deployed_once(known: Artefact, steps: int) -> None:
    assert len(plan_deployment(SYSTEM, TABLES, inspection(), Build((known,)), [local()])) == steps


@pytest.mark.parametrize("kind", ["other", "nowhere"])
def test_what_can_be_no_file_is_refused(kind: str) -> None:
    with pytest.raises(SettingsError, match=BOTSERVER):
        plan_deployment(SYSTEM, TABLES, inspection(PRINTED.replace("\tfile\t", f"\t{kind}\t")), None, [local()])


def test_production_has_nothing_to_undo() -> None:
    assert plan_undo(SYSTEM, TABLES, None) == ()
    steps = plan_undo(SYSTEM, TABLES, Build((artefact(),)))
    assert [step.action for step in steps] == ["stop", "production", "rewind", "start"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param("botserver", BOTSERVER, id="by name"),
        pytest.param("/etc/any.conf", "/etc/any.conf", id="by path"),
        pytest.param("botsever", "no artefact 'botsever'", id="unknown"),
        pytest.param("/opt/gbo/work/x", "resets of system empty", id="wiped"),
        pytest.param("/opt/gbo/logs/x", "resets of system empty", id="log"),
        pytest.param("/opt/../x", "not the plain path", id="not plain"),
        pytest.param("/opt/a\nb", "not the plain path", id="newline"),
    ],
)
def test_an_artefact_goes_where_the_settings_or_its_path_say(name: str, path: str) -> None:
    if path.startswith("/"):
        assert target(SYSTEM, name) == path
    else:
        with pytest.raises(SettingsError) as caught:
            target(SYSTEM, name)
        assert path in f"{caught.value} {caught.value.seen}"


def test_settings_name_further_artefacts() -> None:
    layer = Layer.from_dotted(
        "test", {"containers.system.deploy.worker": "/opt/w", "containers.llm.deploy.llm": "/opt/l"}
    )
    containers = build([layer]).containers
    assert dict(containers["system"].deploy) == {**SYSTEM.deploy, "worker": "/opt/w"}
    assert dict(containers["llm"].deploy) == {"llm": "/opt/l"}


def test_the_database_of_a_build_is_the_one_that_its_container_needs() -> None:
    assert database_of(SYSTEM, SETTINGS) == TABLES
    assert database_of(CACHE, SETTINGS) is None


@pytest.mark.parametrize(
    ("words", "files"),
    [
        pytest.param(
            ["botserver=/a", "botui=/b"], {"system": {"botserver": Path("/a"), "botui": Path("/b")}}, id="names"
        ),
        pytest.param(["drive:/etc/x=/a=b"], {"drive": {"/etc/x": Path("/a=b")}}, id="a container's path"),
        pytest.param(["/opt/x=/a"], "does not say which file goes where", id="a path of nobody's"),
        pytest.param(["unknown=/a"], "does not say which file goes where", id="unknown"),
        pytest.param(["botserver"], "does not say which file goes where", id="no file"),
        pytest.param(["botserver=/a", "system:botserver=/b"], "names botserver twice", id="twice"),
    ],
)
def test_sessions_say_what_they_deploy(words: list[str], files: dict[str, dict[str, Path]] | str) -> None:
    settings = build([Layer.from_dotted("test", {"pytest.deploy": words})])
    if isinstance(files, str):
        with pytest.raises(SettingsError, match=files):
            wanted_files(settings)
    else:
        assert wanted_files(settings) == files


def test_a_mark_says_what_was_marked() -> None:
    build = Build((artefact(),), "deploying", ("/srv/botserver",), (artefact("c" * 64),), "tables")
    assert build_of(clone(build.to_text())) == build
    assert build_of(clone("")) is None
    assert build_of(None) is None
    for text in ("{", "[]", '{"artefacts": 1}', '{"artefacts": [{}], "before": [], "changed": []}'):
        found = build_of(clone(text))
        assert found is not None
        assert found.state == "damaged"


def clone(mark: str) -> Instance:
    config = {marks.BUILD: mark} if mark else {}
    return structs.replace(INSTANCE, config=config)


INSTANCE = Instance.from_api({"name": "system", "status": "Running", "config": {}, "devices": {}}, "STAGE-GBO")


# Scripts, run here ------------------------------------------------------------------------------------------------


def sh(script: str, content: bytes = b"") -> str:
    return subprocess.run(["sh", "-c", script], input=content, capture_output=True, check=True).stdout.decode()


@pytest.mark.parametrize("there", [True, False], ids=["a file of production", "none in production"])
def test_files_are_swapped_and_put_back_wherever_it_was_interrupted(tmp_path: Path, there: bool) -> None:
    real = tmp_path / "bot server"
    if there:
        real.write_text("production")
        real.chmod(0o751)

    def seen() -> list[tuple[str, str, int]]:
        return sorted((each.name, each.read_text(), each.stat().st_mode) for each in tmp_path.iterdir())

    original = seen()
    for content in (b"first", b"second"):
        sh(discard_script([str(real)], ("new", "before")))
        assert sh(receive_script(str(real), len(content)), content)
        before = seen()
        sh(swap_script([str(real)]))
        assert real.read_bytes() == content
        if there:
            assert real.stat().st_mode & 0o7777 == 0o751
        sh(put_back_script([str(real)], "before"))
        sh(put_back_script([str(real)], "before"))
        assert [each for each in seen() if "production" not in each[0]] == [
            each for each in before if not each[0].endswith((".new", "production", "production-absent"))
        ]
        sh(receive_script(str(real), len(content)), content)
        sh(swap_script([str(real)]))
    sh(discard_script([str(real)], ("new", "before")))
    sh(put_back_script([str(real)], "production"))
    sh(put_back_script([str(real)], "production"))
    assert seen() == original


def test_a_stream_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    real = tmp_path / "botserver"
    done = subprocess.run(["sh", "-c", receive_script(str(real), 10)], input=b"12345", capture_output=True, check=False)
    assert (done.returncode, list(tmp_path.iterdir())) == (3, [])


def test_the_look_is_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("x")
    paths = [str(tmp_path / name) for name in ("link", "absent", "none/file", ".")]
    printed = subprocess.run(["sh", "-c", inspect_script(paths, [])], capture_output=True, check=False).stdout.decode()
    found = parse_inspection(printed, paths)
    assert [each.kind for each in found.files] == ["file", "absent", "nowhere", "other"]
    assert found.files[0].real == str(tmp_path / "file")


def test_the_look_finds_the_control_groups_of_what_runs_a_file(tmp_path: Path) -> None:
    program = tmp_path / "a program"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "60"]) as process:
        try:
            printed = subprocess.run(
                ["sh", "-c", inspect_script([str(program)], [])], capture_output=True, text=True, check=False
            ).stdout
            groups = {line.rpartition("/")[2] for line in Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()}
        finally:
            process.kill()
    rows = [line.split("\t") for line in printed.splitlines() if line.startswith("runs\t")]
    assert {row[1] for row in rows} == {str(program)}
    assert {row[2] for row in rows} == groups


# Kept for new clones ----------------------------------------------------------------------------------------------


def test_saved_builds_are_there_until_the_last_is_deployed(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    saved = SavedBuilds("stage", environ)
    assert (saved.exist, saved.read(), SavedBuilds("other", environ).read()) == (False, {}, {})
    saved.file("abc").write_bytes(b"x")
    saved.add({"system": "one"})
    saved.add({"llm": "two"})
    assert SavedBuilds("stage", environ).read() == {"system": "one", "llm": "two"}
    saved.remove("system")
    assert (saved.exist, saved.file("abc").read_bytes()) == (True, b"x")
    saved.remove("llm")
    assert (saved.exist, list((tmp_path / "pytest-stagegbo/builds").iterdir())) == (False, [])


def test_a_damaged_note_about_saved_builds_is_none(tmp_path: Path) -> None:
    saved = SavedBuilds("stage", {"XDG_CACHE_HOME": str(tmp_path)})
    saved.add({"system": "one"})
    next(saved.folder.iterdir()).write_text("{")
    assert saved.read() == {}

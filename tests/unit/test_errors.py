"""Errors say what failed, survive the way between processes, and can be told apart by programs."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from pytest_stagegbo import errors
from pytest_stagegbo.errors import ServerRefused, StageGboError

CLASSES: list[type[StageGboError]] = [getattr(errors, name) for name in errors.__all__]
EXIT_CODES = {
    "SettingsError": 2,
    "MissingRequirement": 3,
    "ServerUnreachable": 3,
    "MemberAway": 3,
    "ProductionProtected": 4,
    "ProductionAccessError": 4,
    "NotOurs": 4,
    "UnsafeClone": 4,
    "NoRoom": 5,
    "LimitTooSmall": 5,
    "NotReady": 6,
    "IsolationBroken": 9,
    "VaultSealed": 7,
    "LockTimeout": 8,
    "LeaseLost": 8,
    "Residue": 10,
    "BuildFailed": 11,
}


def an_error(kind: type[StageGboError]) -> StageGboError:
    error = kind("it broke", seen="smoke", remedy="mend it")
    if isinstance(error, ServerRefused):
        error.status = 409
    return error


@pytest.mark.parametrize("kind", CLASSES)
class TestEvery:
    def test_survives_pickling_with_all_its_attributes(self, kind: type[StageGboError]) -> None:
        error = an_error(kind)
        found = pickle.loads(pickle.dumps(error))
        assert type(found) is kind
        assert vars(found) == vars(error)
        assert (str(found), found.args) == (str(error), error.args)

    def test_survives_pickling_with_what_was_added_later(self, kind: type[StageGboError]) -> None:
        error = an_error(kind)
        error.log = ["line"]  # type: ignore[attr-defined]
        assert pickle.loads(pickle.dumps(error)).log == ["line"]

    def test_can_be_copied(self, kind: type[StageGboError]) -> None:
        assert str(copy.deepcopy(an_error(kind))) == str(an_error(kind))

    def test_is_caught_by_the_root(self, kind: type[StageGboError]) -> None:
        assert issubclass(kind, StageGboError)

    def test_has_a_documented_exit_code(self, kind: type[StageGboError]) -> None:
        assert kind.exit_code == EXIT_CODES.get(kind.__name__, 1)

    def test_has_a_code_of_its_own(self, kind: type[StageGboError]) -> None:
        assert re.fullmatch(r"SG\d{3}", kind.code)
        assert [other for other in CLASSES if other.code == kind.code] == [kind]

    def test_is_in_the_tree(self, kind: type[StageGboError]) -> None:
        """The module's docstring draws the tree."""
        branch = re.search(rf"^ +(?:[├└]── )?{kind.__name__}\b", errors.__doc__ or "", flags=re.MULTILINE)
        assert branch is not None


def test_the_tree_shows_no_class_that_does_not_exist() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert set(drawn) == {kind.__name__ for kind in CLASSES} - {"StageGboError"}
    assert len(drawn) == len(set(drawn))


def test_every_class_of_the_module_is_public() -> None:
    defined = {name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, Exception)}
    assert defined == set(errors.__all__)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        pytest.param({}, "it broke", id="message"),
        pytest.param({"seen": "smoke"}, "it broke\nlast seen: smoke", id="seen"),
        pytest.param({"remedy": "mend it"}, "it broke\nwhat to do: mend it", id="remedy"),
        pytest.param(
            {"seen": "smoke", "remedy": "mend it"}, "it broke\nlast seen: smoke\nwhat to do: mend it", id="all"
        ),
    ],
)
def test_a_message_says_what_failed_what_was_seen_and_what_to_do(parts: dict[str, str], text: str) -> None:
    assert StageGboError("it broke", **parts).text == text


def test_an_error_ends_with_the_command_that_explains_it() -> None:
    assert str(ServerRefused("no")) == "no\nmore: stagegbo explain SG101"


def test_a_refusal_carries_the_status_of_the_answer() -> None:
    assert ServerRefused("no", status=404).status == 404
    assert ServerRefused("no").status == 0

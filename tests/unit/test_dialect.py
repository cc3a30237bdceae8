"""What is known of releases of Incus, and how their answers are read."""

from __future__ import annotations

import pytest
from fakes import refused

from pytest_stagegbo.errors import OperationFailed
from pytest_stagegbo.incus import dialect


@pytest.mark.parametrize("version", ["6.0.0", "6.0.4", "6.0", "7.0.2", "7.0.11"])
def test_releases_of_the_long_term_lines_are_tested(version: str) -> None:
    found = dialect.support_level(version)
    assert found.tested
    assert version[:3] in found.text
    assert not found.remedy


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("6.12", "none of the long-term lines"),
        ("6.1", "none of the long-term lines"),
        ("0.7", "none of the long-term lines"),
        ("7.1.0", "newer than what was tested"),
        ("8.0.0", "newer than what was tested"),
        ("10.0", "newer than what was tested"),
        ("60.0.1", "newer than what was tested"),
        ("", "an unknown release"),
        ("git-1a2b3c4", "an unknown release"),
    ],
)
def test_of_others_it_is_said_that_they_are_not(version: str, said: str) -> None:
    found = dialect.support_level(version)
    assert not found.tested
    assert found.text.startswith(said)
    assert "the tests run on 6.0 and 7.0" in found.text
    assert found.remedy


@pytest.mark.parametrize(
    "seen",
    [
        "Failed creating instance from copy: Failed to run: btrfs qgroup limit 10000000000: exit status 1",
        "write /var/lib/incus/x: Disk quota exceeded",
        "Failed to run: zfs set refquota=1 tank/x: size is less than current used or reserved space",
    ],
)
def test_every_driver_s_words_for_a_limit_that_is_too_low(seen: str) -> None:
    assert dialect.over_quota(OperationFailed("copying failed", seen=seen))


def test_a_pool_that_is_full_is_another_matter() -> None:
    assert not dialect.over_quota(OperationFailed("copying failed", seen="no space left on device"))


def test_an_instance_that_is_busy() -> None:
    assert dialect.is_busy(refused(400, 'Instance is busy running a "stop" operation'))
    assert dialect.is_busy(
        refused(200, "Failed to create operation: A matching non-reusable operation has now succeeded")
    )
    assert dialect.is_busy(refused(400, "Instance is running"))
    assert dialect.is_busy(refused(200, "Instance not found"))
    assert not dialect.is_busy(refused(400, "The instance is already running"))
    assert dialect.runs_already(refused(200, "The instance is already running"))
    assert not dialect.runs_already(refused(400, "Instance is running"))


@pytest.mark.parametrize("seen", ["The instance is already stopped", 'container is not running: "STAGE-GBO_cache"'])
def test_a_stop_that_comes_after_another_one_is_done(seen: str) -> None:
    assert dialect.is_stopped_already(refused(200, seen))
    assert not dialect.is_stopped_already(refused(200, "Failed to stop"))


def test_a_network_that_something_else_on_the_host_came_between() -> None:
    seen = "Failed to delete bridge children interfaces: Failed to run: ip -d -j link show physxt8Uec: exit status 1"
    assert dialect.lost_an_interface(refused(500, f'{seen} (Device "physxt8Uec" does not exist.)'))
    assert not dialect.lost_an_interface(refused(400, "The network already exists"))


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("{ a; } ${b} {{}}", "{ a; } ${b} {% templatetag openbrace %}{}}"),
        ("{% verbatim %}{# c #}", "{% templatetag openbrace %}% verbatim %}{% templatetag openbrace %}# c #}"),
        ("{{{%", "{% templatetag openbrace %}{% templatetag openbrace %}{% templatetag openbrace %}%"),
        ("{", "{"),
    ],
)
def test_no_text_is_a_tag_to_the_template_engine(text: str, sent: str) -> None:
    assert dialect.as_template(text) == sent
    assert sent.replace("{% templatetag openbrace %}", "{") == text

"""Collects in the controller of pytest-xdist what each worker did to the stage it used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_stagegbo.plugin.process import StageProcess

__all__ = ["Workers"]


class Workers:
    """Counts the workers, and adds what each did to the stage to the summary."""

    def __init__(self, process: StageProcess) -> None:
        self._process = process
        self.used_stage = False
        """Whether any worker did something to a stage."""
        self.out: set[str] = set()
        """Workers that have not said yet what they did, or died without."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """A worker is about to start."""
        self._process.run = str(node.workerinput["testrunuid"])
        self.out.add(str(node.workerinput["workerid"]))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker has ended, and sends what it did to the stage, if it did not die."""
        output, number = getattr(node, "workeroutput", None), str(node.workerinput["workerid"])
        if output is None or number not in self.out:  # an interrupted one is said to be down twice
            return
        self.out.discard(number)
        found = output.get("stagegbo")
        if found:
            from pytest_stagegbo.session.summary import Summary

            self.used_stage = True
            with self._process.noting_trouble(f"what worker {number} did is not known"):
                self._process.summary().merge(Summary.from_json(found))

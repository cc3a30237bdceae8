"""Finds out whether a report of the session is asked for (`--stage-report`), and where it shall be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.plugin.options import RECORDS, destination
from pytest_stagegbo.plugin.running import runs_tests

if TYPE_CHECKING:
    import pytest

    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.plugin.process import StageProcess
    from pytest_stagegbo.plugin.provisioning import Provisioning
    from pytest_stagegbo.plugin.recording import Recording

__all__ = ["recording_of"]

SUFFIX = ".records"
"""Ends the name of the folder with the records of a page."""


def recording_of(
    config: pytest.Config, configuration: Configuration, process: StageProcess, provisioning: Provisioning
) -> Recording | None:
    """The recording of this process; None: nobody has asked for a report."""
    folder, page = _places(config, is_worker=process.is_worker)
    if folder is None:
        return None
    from pytest_stagegbo.plugin.recording import Recording

    return Recording(config, configuration, process, provisioning, folder, page)


def _places(config: pytest.Config, *, is_worker: bool) -> tuple[Path | None, Path | None]:
    """The folder of the records, and the page, which a worker does not make. `REPORT.html` has `REPORT.records`."""
    if is_worker:
        folder = getattr(config, "workerinput", {}).get(RECORDS)
        return (Path(folder) if folder else None), None
    option, ini = config.getoption(destination("report")), config.getini(destination("report"))
    if not (option or ini) or not runs_tests(config):
        return None, None
    page = (config.invocation_params.dir / Path(option).expanduser()) if option else config.rootpath / ini
    if not page.name or page.suffix == SUFFIX:
        import pytest

        raise pytest.UsageError(f"--stage-report: {page} can't be a page: name a file, such as report.html")
    return page.with_suffix(SUFFIX), page

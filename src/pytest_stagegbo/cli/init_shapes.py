"""What `init --json` prints: see `cli/shapes.py`."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from pytest_stagegbo.cli.shapes import Examined, Part, Report

__all__ = ["Init"]


class FoundService(Part):
    """What one program of production offers to others."""

    protocol: str
    port: int
    tls: bool
    program: str
    unit: Annotated[str, Meta(description="its systemd service; empty: none was found")]


class FoundContainer(Part):
    """A container of production that the stage has."""

    name: Annotated[str, Meta(description="in the stage")]
    source: Annotated[str, Meta(description="in production")]
    why: str
    sure: str
    looked_at: str
    addresses: list[str]
    services: list[FoundService]


class LeftOut(Part):
    """A container of production that the stage does not have."""

    name: str
    reason: str


class Conclusion(Part):
    """A setting, and why it has this value."""

    key: str
    value: Any
    why: str
    sure: str


class Question(Part):
    """What only a person can say."""

    key: str
    text: str
    default: str
    choices: list[str]
    answer: Annotated[str | None, Meta(description="null: nobody was asked")]


class Init(Report, tag="stagegbo.init/1"):
    """`init --json`."""

    file: str
    written: bool
    text: Annotated[str, Meta(description="the whole file")]
    source_project: str
    containers: list[FoundContainer]
    left_out: list[LeftOut]
    settings: list[Conclusion]
    questions: list[Question]
    doubts: list[str]
    own_pool: Annotated[str | None, Meta(description="a command that makes a pool for the stage; null: no advice")]
    doctor: Annotated[list[Examined] | None, Meta(description="null: nothing was written")]

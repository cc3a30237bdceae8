"""Which container of production is which: by what it runs, who is connected to it, and its name. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pytest_stagegbo.discovery.records import Service, Source, Sureness, Survey

__all__ = ["DATA", "ROLES", "Assigned", "Question", "Roles", "assign", "choose_project", "is_of_role"]

ROLES = ("system", "tables", "vault", "cache", "drive", "llm")
"""Names of General Bots' containers, which are those of the stage's by default."""
_PROTOCOLS = {"tables": "postgresql", "vault": "vault", "cache": "valkey", "drive": "s3"}
_UNITS = {"system": ("botserver", "botui"), "llm": ("llm", "llama", "ollama")}
_HINTS = {
    "system": r"system|bot",
    "tables": r"tables|postgres|pg|sql|db|database",
    "vault": r"vault|bao|secrets?",
    "cache": r"cache|valkey|redis",
    "drive": r"drive|minio|s3|storage|buckets?",
    "llm": r"llm|llama|ollama|models?",
}
DATA = frozenset(_PROTOCOLS.values())
"""Protocols of services that keep data."""


class Question(Struct, frozen=True):
    """What can't be known, and only a person can say."""

    key: str
    """Names it in `--json`: `project`, `role.tables`, `clone.mail`."""
    text: str
    default: str
    """What holds where nobody is asked."""
    choices: tuple[str, ...] = ()
    """Empty: any text."""


class Assigned(Struct, frozen=True):
    """A container of production that the stage has, under the name `name`."""

    name: str
    source: Source
    why: str
    sure: Sureness
    is_extra: bool = False
    """Whether it is none of General Bots' six."""


class Roles(Struct, frozen=True):
    assigned: tuple[Assigned, ...]
    left_out: tuple[tuple[Source, str], ...]
    """Containers that are not cloned, each with the reason."""
    questions: tuple[Question, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Roles that no container has."""
        return tuple(role for role in ROLES if role not in {each.name for each in self.assigned})


def is_of_role(service: Service, role: str) -> bool:
    """Whether a service is what the container with this role is for."""
    if role in _PROTOCOLS:
        return service.protocol == _PROTOCOLS[role]
    stem = service.unit.removesuffix(".service")
    return any(stem == word or service.program.startswith(word) for word in _UNITS[role])


def choose_project(survey: Survey, asked: str, answers: Mapping[str, str]) -> tuple[str, str, tuple[Question, ...]]:
    """Production's project, the reason, and a question where several may be it. Empty: there is none.

    Args:
        asked: The project that the command line names; empty: none.
    """
    if asked:
        return asked, "the command line names it", ()
    counts = {name: len(_roles_in(sources)) for name, sources in survey.projects.items()}
    best = max(counts.values(), default=0)
    if not best:
        return "", "", ()
    names = sorted(name for name, count in counts.items() if count == best)
    reason = f"{best} of General Bots' {len(ROLES)} kinds of containers are in it"
    if len(names) == 1:
        return names[0], reason, ()
    found = "default" if "default" in names else names[0]
    question = Question("project", f"production may be in {' or '.join(names)}; which?", found, tuple(names))
    return answers.get("project", found), f"{reason}, and in {' and '.join(names)}", (question,)


def assign(sources: Sequence[Source], answers: Mapping[str, str]) -> Roles:
    """Give each role to a container; further data services are cloned too, all else is left out.

    Args:
        answers: What a person said, by the keys of questions.
    """
    questions: list[Question] = []
    assigned: list[Assigned] = []
    free = {source.name: source for source in sources}
    system: Source | None = None
    for role in ROLES:
        ranked = _ranked(role, [source for source in sources if source.name in free], system)
        if not ranked:
            continue
        (score, found, why, sure), *others = ranked
        rivals = [found.name, *(source.name for other, source, _, _ in others if other == score)]
        if len(rivals) > 1:
            key = f"role.{role}"
            text = f"{' and '.join(rivals)} are alike; which one is {role}, BotServer's own?"
            questions.append(Question(key, text, found.name, tuple(rivals)))
            named = answers.get(key, "")
            if named in rivals:
                found, why, sure = free[named], "you said so", "seen"
            else:
                why, sure = f"{why}; so does {', '.join(rivals[1:])}", "unsure"
        assigned.append(Assigned(role, found, why, sure))
        del free[found.name]
        system = found if role == "system" else system
    left_out: list[tuple[Source, str]] = []
    for source in free.values():
        extra, reason = _extra(source, answers, questions)
        if extra is None:
            left_out.append((source, reason))
        else:
            assigned.append(extra)
    return Roles(tuple(assigned), tuple(left_out), tuple(questions))


def _extra(source: Source, answers: Mapping[str, str], questions: list[Question]) -> tuple[Assigned | None, str]:
    data = [service for service in source.services if service.protocol in DATA]
    name = f"other-{source.name}" if source.name in ROLES else source.name
    if data:
        return Assigned(name, source, f"{data[0].why}; it is cloned beside the six", "seen", True), ""
    if not source.services:
        return None, "nothing in it listens, as far as can be seen" if source.sight != "names" else source.blind
    ports = ", ".join(f"{each.program} on {each.port}" for each in source.services)
    if source.sight == "running":
        key = f"clone.{source.name}"
        questions.append(Question(key, f"{source.name} runs {ports}: clone it as well?", "no", ("no", "yes")))
        if answers.get(key) == "yes":
            return Assigned(name, source, "you said so", "unsure", True), ""
    return None, f"it runs {ports}, which is no service of General Bots that is known here"


def _ranked(role: str, sources: Collection[Source], system: Source | None) -> list[tuple[int, Source, str, Sureness]]:
    """Candidates for a role, the best first: score, container, reason, sureness."""
    found: list[tuple[int, Source, str, Sureness]] = []
    for source in sources:
        services = [service for service in source.services if is_of_role(service, role)]
        named = source.name == role
        hinted = re.search(rf"(?<![a-z])({_HINTS[role]})(?![a-z])", source.name.lower()) is not None
        if services:
            score, why = 8, services[0].why
            if system is not None and _connected(system, source, services):
                score, why = score + 4, f"{why}; {system.name} is connected to it"
            score += 2 * named + hinted
            found.append((score, source, why, services[0].sure))
        elif named and source.sight != "names" and not any(each.protocol in DATA for each in source.services):
            found.append((2, source, "its name, though no such service was seen in it", "unsure"))
        elif source.sight == "names" and (named or hinted):
            why = "its name" if named else f"its name is like {role}"
            found.append((2 * named + hinted, source, why, "likely" if named else "unsure"))
    return sorted(found, key=lambda each: (-each[0], each[1].name))


def _connected(system: Source, other: Source, services: Collection[Service]) -> bool:
    return any((address.ip, service.port) in system.connections for address in other.addresses for service in services)


def _roles_in(sources: Sequence[Source]) -> set[str]:
    return {role for role in ROLES if _ranked(role, sources, None)}

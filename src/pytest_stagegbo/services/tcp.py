"""The probe for an open port. It is the weakest probe, for services whose protocol has no other.

It lies more than it says: the kernel accepts connections for a process that is stuck, and socket activation or
a proxy accepts them for one that isn't running.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.services.answer import Answer, answering
from pytest_stagegbo.services.wire import Conversation

if TYPE_CHECKING:
    from pytest_stagegbo.settings.model import ProbeSettings

__all__ = ["ask"]


@answering
def ask(probe: ProbeSettings, host: str, timeout: float) -> Answer:
    with Conversation(host, probe.port, timeout, tls=probe.tls):
        return Answer("ready", "accepts connections (nothing more was asked)")

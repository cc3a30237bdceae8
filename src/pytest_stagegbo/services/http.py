"""The probe for services with a health page, such as llama.cpp's server and BotServer: 200 is ready, 503 is
starting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.services.answer import Answer, answering
from pytest_stagegbo.services.webrequest import request

if TYPE_CHECKING:
    from pytest_stagegbo.settings.model import ProbeSettings

__all__ = ["ask"]


@answering
def ask(probe: ProbeSettings, host: str, timeout: float) -> Answer:
    path = probe.path if probe.path.startswith("/") else f"/{probe.path}"
    reply = request(host, probe.port, path, timeout, tls=probe.tls)
    if reply.status == 200:
        return Answer("ready", str(reply))
    return Answer("starting" if reply.status == 503 else "wrong", str(reply))

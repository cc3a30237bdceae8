"""POSIX shell for the first boot that keeps a copy of a folder for later resets."""

from __future__ import annotations

import shlex

__all__ = ["BASELINES", "BUILD", "GOLDEN", "keep_script"]

GOLDEN = ".stagegbo-golden"
"""What is behind the name of the folder for its copy."""
BUILD = ".stagegbo-build"
"""Likewise for the copy that a deployed build has migrated, which is the clean state while it is deployed."""
BASELINES = ".stagegbo-baselines"
"""Likewise for the folder with what is kept for baselines."""


def keep_script(folder: str) -> str:
    """Return POSIX shell that keeps a copy of a folder, if the copy can share the folder's blocks.

    With a script in `$place` the clone is one of a golden clone's, whose copy serves. Any other copy that is there is
    that of a source which was a clone itself once.
    """
    data, golden = shlex.quote(folder), shlex.quote(folder + GOLDEN)
    return f"""[ -n "${{place#*:}}" ] || rm -rf {golden} {golden}.clean {data}.stagegbo-next {data}.stagegbo-old \\
    {data}.stagegbo-spare {data}.stagegbo-spare.new {data}{BUILD} {data}{BUILD}.clean {data}{BUILD}-before \\
    {data}{BASELINES}
if [ -d {data} ] && [ ! -e {golden} ]; then
    rm -rf {golden}.new
    if cp -a --reflink=always {data} {golden}.new; then mv {golden}.new {golden}; else rm -rf {golden}.new; fi
fi
"""

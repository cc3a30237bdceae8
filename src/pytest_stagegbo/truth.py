"""What text means that says yes or no: in the environment, in pytest's ini, on the command line."""

from __future__ import annotations

from pytest_stagegbo.errors import SettingsError

__all__ = ["LAB_VARIABLE", "truth", "wanted_lab"]

LAB_VARIABLE = "STAGEGBO_LAB"
LABS = ("6.0", "7.0")
"""Versions of Incus that a lab may be asked for with."""
WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def truth(text: str) -> bool | None:
    """Whether a word means yes, in any case of letters; None if it means neither yes nor no."""
    return WORDS.get(text.strip().lower())


def wanted_lab(text: str, origin: str) -> bool | str:
    """Whether a text asks for the lab, and with which version of Incus. Empty text means no.

    Raises:
        SettingsError: it is neither yes nor no nor a version.
    """
    word = text.strip()
    said = truth(word or "no")
    if said is not None:
        return said
    if word in LABS:
        return word
    raise SettingsError(
        f"{origin}: {text!r} does not say whether to use the lab", remedy=f"choose from on, off, {', '.join(LABS)}"
    )

"""What one process does with stages: it reserves and resets containers for each test, guards the disk, and reports.

Modules here know nothing of pytest's own types; the package `plugin` has those.
"""

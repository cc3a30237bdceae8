"""Leases: the right of one host to change a stage, over all machines that use the same daemon."""

"""Manages several stages, so that each worker of a run can have a whole stage for itself.

A slot is a stage like any other, with settings of its own derived from those of the first, and copied from a golden
copy of production instead of production.
"""

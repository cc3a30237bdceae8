"""Further stages beside the first: each worker of a run may have a whole one for itself.

A slot is a stage like any other, with settings of its own derived from those of the first, and copied from a golden
copy of production instead of production.
"""

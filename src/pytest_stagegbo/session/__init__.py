"""A pytest process and the stage."""

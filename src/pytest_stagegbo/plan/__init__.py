"""Decides what has to be done before anything is done: frozen steps, or a reason not to start."""

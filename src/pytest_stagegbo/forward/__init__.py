"""A way to the clones' services through the daemon, for machines that have no route to the stage's network."""

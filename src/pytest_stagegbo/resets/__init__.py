"""Making containers of the stage clean again: one way to do it in each module, and `resetter`, which chooses."""

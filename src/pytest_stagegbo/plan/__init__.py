"""What is to be done, decided before anything is: frozen steps, or a reason not to start."""

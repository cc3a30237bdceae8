"""Clone a General Bots production on Incus into an isolated stage, and test against it."""

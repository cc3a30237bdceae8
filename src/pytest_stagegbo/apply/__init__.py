"""Carrying out a plan: each step, the wait for what it began, and what went wrong with it."""

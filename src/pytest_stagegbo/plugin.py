"""What pytest loads at its start wherever this package is installed, so nothing heavy may be imported here."""

"""What runs inside of production's containers: scripts for Debian 12's Python, never imported by the lab."""

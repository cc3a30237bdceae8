"""What is there, read once: production, the stage, the host's networks, packet filter and room. Nothing here writes."""

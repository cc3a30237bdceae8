"""What a production is like, and the settings that follow from it. Nothing here writes to the daemon or makes a stage.

Reading is in `survey`; all else is pure.
"""

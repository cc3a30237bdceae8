"""What a stage should be: its project, bridge, access list, pool and clones, and the marks on them.

Pure functions of the settings. Nothing here asks the daemon or changes anything.
"""

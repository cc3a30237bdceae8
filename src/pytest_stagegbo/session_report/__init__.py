"""Records of what a session did with the stage, and the page that shows them.

Each process of a session writes its own file of events (`events`, `recorder`, `disk`). Files of one or several sessions
are read together (`reading`), put into lanes on one clock (`timeline`), looked at for what would shorten waits
(`advice`), and shown by one page that needs no network (`page`). pytest's hooks belong to `plugin`, and nothing here
asks the daemon.
"""

"""From a log directory back to events: segments in whatever form they are in by now, and what is not in one yet.

Reading changes nothing and creates nothing. Importing this package imports none of its modules.
"""

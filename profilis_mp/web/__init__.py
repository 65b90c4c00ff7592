"""What do the web frameworks' adapters have in common?  A request, when it is over, and what is reported of it.

Nothing here knows a framework.
"""

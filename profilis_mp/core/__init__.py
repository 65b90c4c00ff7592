"""From something that happened to an exporter: building events, encoding them, handing them over.

Importing this package imports none of its modules.
"""

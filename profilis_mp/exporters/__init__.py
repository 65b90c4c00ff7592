"""Where events go: `profilis_mp.exporters.jsonl`, `profilis_mp.exporters.console`, and what they have in common.

Importing this package imports none of its modules.
"""

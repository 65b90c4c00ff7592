"""What pytest must not import by itself."""

# An application that gunicorn imports, with the environment that its test gives it.
collect_ignore = ["hosts/gunicorn_app.py"]

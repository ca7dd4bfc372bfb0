"""Stores in SQL databases, through SQLAlchemy Core. Not here: what is stored means (`core/`, `policy/`)."""

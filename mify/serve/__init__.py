"""A model behind HTTP: an existing engine, and in front of it the infill calls that editors make."""

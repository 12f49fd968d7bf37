"""Settings: pydantic models to YAML and back, and errors that name the setting."""

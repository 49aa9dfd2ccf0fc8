"""The control port: its executable model, and the bench that any decider must pass."""

"""One file a command. Each has `register(app)`, which adds it to the command line; `cosim.cli` finds the files."""

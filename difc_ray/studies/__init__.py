"""Studies: whole questions that the system answers by one command."""

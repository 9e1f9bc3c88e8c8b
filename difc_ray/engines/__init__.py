"""Who executes a step: one process, or Ray actors."""

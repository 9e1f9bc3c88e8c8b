"""Published tables again: which runs they need, and what came of them beside what was published."""

"""A chat in the terminal: what is said (conversation, settings, saved), commands, and the screen."""

"""What is stored: the states of a task, the one kind of row, and the changes to it."""

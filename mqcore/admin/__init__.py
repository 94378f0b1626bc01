"""What an operator may do with queues and dead letters."""

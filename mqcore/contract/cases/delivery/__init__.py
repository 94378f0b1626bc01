"""Profile *delivery*: order, who gets a message, how many he may hold, and that settling does what it says."""

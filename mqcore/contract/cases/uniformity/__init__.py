"""Profile *uniformity*: one behaviour everywhere: what a message keeps, what a name means, and both ways to call."""

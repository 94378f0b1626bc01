"""Profile *retry*: Moves at the seam, what a failed handler's message goes through, and what is no attempt at all."""

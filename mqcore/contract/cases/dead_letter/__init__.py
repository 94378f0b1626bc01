"""Profile *dead-letter*: what ends there, with which record, how it comes back; and what never may: the innocent."""

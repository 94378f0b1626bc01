"""Profile *uniformity*: values, deduplication, outcomes and interfaces are the same everywhere."""

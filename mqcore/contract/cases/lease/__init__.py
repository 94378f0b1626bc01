"""Profile *lease*: leases that end, owners that die or settle too late, and renewal."""

"""Profile *lease*: claims that end by themselves, owners that die or come too late, and a worker that goes in good order."""

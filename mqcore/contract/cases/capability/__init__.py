"""Profile *capability*: what a backend reports about itself is true (G16).

- Declared: a capability states the limits of `docs/semantics.md`; other profiles show that they
  hold.
- Not declared: core refuses the request before anything is sent.
- Not declared, yet it works: that fails too, since applications could use it.
"""

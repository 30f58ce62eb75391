"""Which engines does the core bring itself? Four that need none: `inline`, `thread`, `memory` and `null`."""

"""From what a person describes to a package that is audited, locked and proven."""

"""Plans: what should be in a store, what of it is missing, doing that, and doing it again on a schedule."""

"""Usage: who used what, how often and how many tokens; recorded in batches, summed by the hour."""

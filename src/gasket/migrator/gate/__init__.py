"""What is checked before anything is applied: the situation, the checks, and the plan."""

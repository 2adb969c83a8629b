"""Templates, their clones, and who has which."""

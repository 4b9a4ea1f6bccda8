"""Fast predictions of a detector: two graphs, what is computed between them, and how they are chosen."""

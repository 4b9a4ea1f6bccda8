"""Fine-tuning on a person's own pictures: cached features of a frozen trunk, heads on them, and the ladder of rungs."""

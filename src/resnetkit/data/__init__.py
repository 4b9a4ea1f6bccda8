"""Pictures: where they come from, how they are decoded and prepared, and the order in which they are seen."""

"""Lists of labelled pictures: CSV and its relatives, JSON lines, text."""

"""Lists of labelled pictures: CSV and similar files, JSON lines, text."""

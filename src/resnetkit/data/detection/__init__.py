"""Pictures with boxes: the one target format, its readers and writers, and the check of annotations."""

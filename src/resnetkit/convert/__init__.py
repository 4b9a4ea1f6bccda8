"""Other people's weights: read without running code, renamed, checked to the last tensor, written as a model file."""

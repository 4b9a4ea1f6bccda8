"""Inference: a model file and pictures to labelled probabilities. It never imports training."""

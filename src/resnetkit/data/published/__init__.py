"""Data and files that others publish: CIFAR, downloads, the Hugging Face Hub."""

"""Published data and weights: CIFAR, downloads and files of the Hugging Face Hub."""

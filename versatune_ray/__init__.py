"""Data composition for fine-tuning large language models: the VersaTune method (arXiv 2411.11266) on Ray."""

__version__ = "0.1.0"

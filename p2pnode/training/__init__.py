"""Local work: tasks, data, the local trainer, evaluation. One of the three rooms that may import torch."""

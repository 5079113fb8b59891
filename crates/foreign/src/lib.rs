//! Checkpoint files of others: Hugging Face folders and GGUF, read as named tensors and settings.

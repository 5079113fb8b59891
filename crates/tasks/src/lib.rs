//! Evaluation tasks: items, prompts, metrics.

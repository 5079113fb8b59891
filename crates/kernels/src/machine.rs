//! What this machine can do: the vector instructions in use, and measured arithmetic and memory rates.

//! Token ids in, token ids out: prefill, decode, sampling, scoring. Knows no text, no socket.

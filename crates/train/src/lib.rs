//! Windows to steps to checkpoints: optimizer, schedule, the loop. Knows no command line.

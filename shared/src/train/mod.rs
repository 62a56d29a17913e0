//! Optimisers, schedules, logs and the training loop.

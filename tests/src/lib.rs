//! Helpers of the end-to-end and golden tests.

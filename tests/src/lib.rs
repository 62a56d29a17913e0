//! Helpers of the end-to-end and golden tests.

pub mod golden;
pub mod tiny;
pub mod tool;
pub mod wave;

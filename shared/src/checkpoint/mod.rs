//! Model files: PyTorch checkpoints in, safetensors in and out, training state.

mod report;

pub use report::LoadReport;

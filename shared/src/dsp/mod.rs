//! Signal processing: windows, short-time Fourier transform, mel filterbanks and log-mel features.

mod features;
mod mel;
mod speech;
mod stft;
mod window;

pub use features::{LogMel, LogMelOptions, instance_norm, pre_emphasis};
pub use mel::{MelFilterbank, MelOptions, hertz_to_mel, mel_to_hertz};
pub use realfft::num_complex::Complex;
pub use speech::{Segment, Speech, SpeechDetector, SpeechDetectorConfig};
pub use stft::{Stft, StftOptions};
pub use window::{Window, WindowShape};

/// Precision in which signals are processed: `f32` or `f64`.
pub trait Sample: realfft::FftNum + realfft::num_traits::Float + std::iter::Sum {
    /// `value`, rounded.
    fn of(value: f64) -> Self;
}

impl Sample for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
}

impl Sample for f64 {
    fn of(value: f64) -> Self {
        value
    }
}

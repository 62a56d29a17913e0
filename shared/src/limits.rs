//! Caps for untrusted input. Every reader takes a [`Limits`] and refuses what is above with
//! [`crate::Error::Limit`], before it allocates.

/// Caps on what a file may claim or hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest audio or video, in seconds of its own time.
    pub duration_s: f64,
    /// Most audio channels.
    pub channels: usize,
    /// Highest sampling rate in Hz.
    pub rate_hz: u32,
    /// Largest waveform held in memory as a whole, in bytes.
    pub waveform_bytes: u64,
    /// Most pixels in a picture or video frame.
    pub pixels: usize,
    /// Most video frames.
    pub frames: usize,
    /// Largest sequence of frames held in memory as a whole, in bytes.
    pub frame_bytes: u64,
    /// Largest header of a structured file (safetensors JSON, pickle stream), in bytes.
    pub header_bytes: usize,
    /// Largest sum of all tensors of a checkpoint, in bytes.
    pub tensor_bytes: u64,
    /// Largest text file (lists, manifests), in bytes.
    pub text_bytes: u64,
}

impl Default for Limits {
    /// Generous for real material: a day of audio, 8 GiB of it at once, 64 channels, 8K frames,
    /// 8 GiB of them at once, 64 GiB of tensors.
    fn default() -> Self {
        Self {
            duration_s: 24.0 * 3600.0,
            channels: 64,
            rate_hz: 768_000,
            waveform_bytes: 8 << 30,
            pixels: 7680 * 4320,
            frames: 24 * 3600 * 60,
            frame_bytes: 8 << 30,
            header_bytes: 100 << 20,
            tensor_bytes: 64 << 30,
            text_bytes: 4 << 30,
        }
    }
}

//! What a computation takes: time, its share of what the processor can do, memory.

use std::fs;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::nn::functional::matmul;

/// Order of the square matrices whose product measures the peak.
pub const PEAK_ORDER: usize = 1024;

/// The times in seconds of `runs` runs after one more, in ascending order.
///
/// # Errors
/// Those of `job`.
pub fn times_s<T, E>(runs: usize, mut job: impl FnMut() -> Result<T, E>) -> Result<Vec<f64>, E> {
    job()?;
    let mut times = vec![];
    for _ in 0..runs {
        let start = Instant::now();
        job()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The median of numbers in ascending order; NaN of none.
pub fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match sorted {
        [] => f64::NAN,
        _ if sorted.len() % 2 == 1 => sorted[half],
        _ => 0.5 * (sorted[half - 1] + sorted[half]),
    }
}

/// Billions of operations a second of the fastest of `runs` products of two f32 matrices of order
/// [`PEAK_ORDER`].
///
/// # Errors
/// Those of the tensor library.
pub fn peak_gflop_per_s(device: &Device, runs: usize) -> Result<f64> {
    let ones = Tensor::ones((PEAK_ORDER, PEAK_ORDER), DType::F32, device)?;
    let times = times_s(runs.max(1), || matmul(&ones, &ones))?;
    Ok(2e-9 * (PEAK_ORDER as f64).powi(3) / times[0])
}

/// What the system (Linux) counts as the process's largest resident memory, in MB of a million bytes.
pub fn peak_memory_mb() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1.024e-3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert!(median(&[]).is_nan());
    }
}

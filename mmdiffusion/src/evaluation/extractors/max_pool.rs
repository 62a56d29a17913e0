//! Maxima over windows, without a gradient.

use candle_core::Tensor;
use shared::Result;

/// Maxima of `x` over windows of `kernel` elements every `stride` elements of dimension `axis`; elements
/// that fill no window are left out.
///
/// # Errors
/// When there is no such dimension or it is shorter than the kernel.
pub fn max_along(x: &Tensor, axis: usize, kernel: usize, stride: usize) -> Result<Tensor> {
    let size = x.dim(axis)?;
    let windows = size.checked_sub(kernel).map_or(0, |rest| rest / stride + 1);
    let part = |offset: usize| -> Result<Tensor> {
        if stride == 1 {
            return Ok(x.narrow(axis, offset, windows)?);
        }
        let places: Vec<u32> =
            (0..windows).map(|window| (offset + window * stride) as u32).collect();
        let places = Tensor::from_vec(places, windows, x.device())?;
        Ok(x.contiguous()?.index_select(&places, axis)?)
    };
    let mut most = part(0)?;
    for offset in 1..kernel {
        most = most.maximum(&part(offset)?)?;
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn windows_overlap_or_leave_a_rest() {
        let x = Tensor::new(
            &[[3f32, 1.0, 4.0, 1.0, 5.0, 9.0], [2.0, 6.0, 5.0, 3.0, 5.0, 8.0]],
            &Device::Cpu,
        )
        .unwrap();
        let pool = |axis, kernel, stride| {
            max_along(&x, axis, kernel, stride).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(pool(1, 3, 2), [[4.0, 5.0], [6.0, 5.0]]);
        assert_eq!(pool(1, 2, 1), [[3.0, 4.0, 4.0, 5.0, 9.0], [6.0, 6.0, 5.0, 5.0, 8.0]]);
        assert_eq!(pool(0, 2, 2), [[3.0, 6.0, 5.0, 3.0, 5.0, 9.0]]);
    }
}

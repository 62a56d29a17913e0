//! Resizing of pictures.

use candle_core::Tensor;
use shared::nn::functional::{Activation, linear};
use shared::{Error, Result};

/// Pictures `x [B, C, h, w]` of another size `[B, C, height, width]`, interpolated between the centres of
/// the four nearest pixels.
///
/// # Errors
/// When `x` has another rank or no pixels.
pub fn resize_bilinear(x: &Tensor, [height, width]: [usize; 2]) -> Result<Tensor> {
    let &[_, _, from_height, from_width] = x.dims() else {
        return Err(Error::shape("pictures to resize", "[B, C, H, W]", x.dims()));
    };
    if from_height == 0 || from_width == 0 {
        return Err(Error::shape("pictures to resize", "at least one pixel", x.dims()));
    }
    let along_last = |x: &Tensor, from: usize, to: usize| {
        let weights = Tensor::from_vec(weights(from, to), (to, from), x.device())?;
        linear(x, &weights.to_dtype(x.dtype())?, None, Activation::Identity)
    };
    let wide = along_last(x, from_width, width)?;
    let turned = along_last(&wide.transpose(2, 3)?.contiguous()?, from_height, height)?;
    Ok(turned.transpose(2, 3)?.contiguous()?)
}

/// The matrix `[to, from]` that interpolates a line.
fn weights(from: usize, to: usize) -> Vec<f32> {
    let mut weights = vec![0.0; from * to];
    for (i, row) in weights.chunks_exact_mut(from).enumerate() {
        let place = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let first = (place as usize).min(from - 1);
        let share = (place - first as f64) as f32;
        row[first] += 1.0 - share;
        row[(first + 1).min(from - 1)] += share;
    }
    weights
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn lines_are_interpolated_between_centres() {
        // As torch.nn.functional.interpolate(mode="bilinear", align_corners=False).
        for (line, to, expected) in [
            (&[1.0f32, 3.0][..], 4, &[1.0f32, 1.5, 2.5, 3.0][..]),
            (&[0.0, 1.0, 2.0, 3.0], 2, &[0.5, 2.5]),
            (&[1.0, 4.0, 7.0], 3, &[1.0, 4.0, 7.0]),
            (&[2.0], 3, &[2.0, 2.0, 2.0]),
        ] {
            let x = Tensor::from_slice(line, (1, 1, 1, line.len()), &Device::Cpu).unwrap();
            for x in [x.clone(), x.transpose(2, 3).unwrap()] {
                let is_wide = x.dims()[2] == 1;
                let size = if is_wide { [1, to] } else { [to, 1] };
                let y = resize_bilinear(&x, size).unwrap();
                assert_eq!(y.dims()[2..], size);
                assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
            }
        }
    }
}

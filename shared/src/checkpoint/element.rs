//! Element types as files store them, and tensors from and to their little-endian bytes.

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};

use crate::{Error, Result};

/// The type of a stored tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    F32,
    F16,
    Bf16,
    F8E4M3,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl Element {
    /// The element type of a safetensors entry; `None` for those that the tensor library cannot
    /// compute with.
    pub fn of_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        use safetensors::Dtype;
        Some(match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            Dtype::F8_E4M3 => Self::F8E4M3,
            Dtype::I64 => Self::I64,
            Dtype::I32 => Self::I32,
            Dtype::I16 => Self::I16,
            Dtype::I8 => Self::I8,
            Dtype::U64 => Self::U64,
            Dtype::U32 => Self::U32,
            Dtype::U16 => Self::U16,
            Dtype::U8 => Self::U8,
            Dtype::BOOL => Self::Bool,
            _ => return None,
        })
    }

    /// Size of an element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::F8E4M3 | Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The smallest dtype of the tensor library that holds every value; `u64` becomes `i64`, which
    /// holds all but the upper half.
    pub fn dtype(self) -> DType {
        match self {
            Self::F64 => DType::F64,
            Self::F32 | Self::F8E4M3 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::I64 | Self::U64 => DType::I64,
            Self::I32 => DType::I32,
            Self::I16 | Self::I8 => DType::I16,
            Self::U32 | Self::U16 => DType::U32,
            Self::U8 | Self::Bool => DType::U8,
        }
    }

    /// The tensor of `shape` whose elements `bytes` holds in row-major order.
    ///
    /// # Errors
    /// When the number of bytes does not fit the shape, or a `u64` is too large for `i64`.
    pub fn tensor(self, bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
        if element_count(shape).is_none() {
            return Err(Error::Argument(format!("the shape {shape:?} is too large")));
        }
        let device = &Device::Cpu;
        let tensor = match self {
            Self::I8 => {
                let values: Vec<i16> = bytes.iter().map(|&byte| i16::from(byte as i8)).collect();
                Tensor::from_vec(values, shape, device)?
            }
            Self::Bool => {
                let values: Vec<u8> = bytes.iter().map(|&byte| u8::from(byte != 0)).collect();
                Tensor::from_vec(values, shape, device)?
            }
            Self::U16 => {
                let (pairs, _) = bytes.as_chunks();
                let values = pairs.iter().map(|&pair| u32::from(u16::from_le_bytes(pair)));
                Tensor::from_vec(values.collect(), shape, device)?
            }
            Self::U64 => {
                let (octets, _) = bytes.as_chunks();
                let values = octets.iter().map(|&octet| i64::try_from(u64::from_le_bytes(octet)));
                let values = values.collect::<Result<Vec<i64>, _>>().map_err(|_| {
                    Error::Argument("a 64-bit unsigned value is too large for i64".into())
                })?;
                Tensor::from_vec(values, shape, device)?
            }
            Self::F8E4M3 => Tensor::from_raw_buffer(bytes, DType::F8E4M3, shape, device)?
                .to_dtype(DType::F32)?,
            _ => Tensor::from_raw_buffer(bytes, self.dtype(), shape, device)?,
        };
        Ok(tensor)
    }
}

/// The number of elements of a tensor of `shape`; `None` when it, or that of its non-empty part, is
/// beyond what can be addressed.
pub(super) fn element_count(shape: &[usize]) -> Option<usize> {
    let product = |least: usize| {
        shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length.max(least)))
    };
    // Strides are products of the lengths, also in an empty tensor.
    product(1)?.checked_mul(size_of::<f64>())?;
    product(0)
}

/// The elements of `tensor` in row-major order as little-endian bytes.
///
/// # Errors
/// For dtypes below a byte or of 8-bit floats, which are not written.
pub(super) fn little_endian_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.flatten_all()?;
    match tensor.dtype() {
        DType::U8 => Ok(tensor.to_vec1()?),
        DType::U32 => encode(&tensor, u32::to_le_bytes),
        DType::I16 => encode(&tensor, i16::to_le_bytes),
        DType::I32 => encode(&tensor, i32::to_le_bytes),
        DType::I64 => encode(&tensor, i64::to_le_bytes),
        DType::BF16 => encode(&tensor, bf16::to_le_bytes),
        DType::F16 => encode(&tensor, f16::to_le_bytes),
        DType::F32 => encode(&tensor, f32::to_le_bytes),
        DType::F64 => encode(&tensor, f64::to_le_bytes),
        dtype => Err(Error::Argument(format!(
            "cannot write tensors of {}; convert them to f32 first",
            dtype.as_str()
        ))),
    }
}

fn encode<T: WithDType, const SIZE: usize>(
    flat: &Tensor,
    bytes_of: impl Fn(T) -> [u8; SIZE],
) -> Result<Vec<u8>> {
    let values: Vec<T> = flat.to_vec1()?;
    Ok(values.into_iter().map(bytes_of).collect::<Vec<_>>().into_flattened())
}

//! Which device computes and with how many threads.

use std::str::FromStr;

use candle_core::Device;
use candle_core::utils::{cuda_is_available, metal_is_available};

use crate::{Error, Result};

/// A device as named on the command line: `cpu`, `cuda`, `cuda:1`, `metal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
    /// An Apple GPU by its number.
    Metal(usize),
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let unknown =
            || Error::Argument(format!("unknown device {name:?}; use cpu, cuda, cuda:N or metal"));
        let (kind, number) = match name.split_once(':') {
            Some((kind, number)) => (kind, number.parse().map_err(|_| unknown())?),
            None => (name, 0),
        };
        match kind {
            "cpu" if number == 0 => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(number)),
            "metal" => Ok(Self::Metal(number)),
            _ => Err(unknown()),
        }
    }
}

impl DeviceName {
    /// Opens the device.
    ///
    /// # Errors
    /// When this build lacks the device's support or the machine lacks the device.
    pub fn open(self) -> Result<Device> {
        let unbuilt = |kind: &str| {
            Error::Argument(format!("this build has no {kind} support; use --device cpu"))
        };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cuda_is_available() => Err(unbuilt("CUDA")),
            Self::Cuda(number) => Ok(Device::new_cuda(number)?),
            Self::Metal(_) if !metal_is_available() => Err(unbuilt("Metal")),
            Self::Metal(number) => Ok(Device::new_metal(number)?),
        }
    }
}

/// Sets the number of threads that compute, for the whole process; `None` takes one per core.
/// Returns the number in force. To be called before other threads run, as it also keeps candle from
/// starting threads beside these.
///
/// # Errors
/// When `threads` is 0 or the pool is already running with another number.
pub fn set_threads(threads: Option<usize>) -> Result<usize> {
    crate::kernels::keep_candle_on_one_thread();
    if let Some(threads) = threads {
        if threads == 0 {
            return Err(Error::Argument("--threads must be at least 1".into()));
        }
        // One pool serves all kernels: rayon's global one.
        let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        if built.is_err() && rayon::current_num_threads() != threads {
            return Err(Error::Argument(format!(
                "cannot change to {threads} threads: {} are already running",
                rayon::current_num_threads()
            )));
        }
    }
    Ok(rayon::current_num_threads())
}

/// Instruction sets of this processor that our kernels can use, best last.
pub fn instruction_sets() -> Vec<&'static str> {
    #[allow(unused_mut)]
    let mut found = vec![];
    #[cfg(target_arch = "x86_64")]
    {
        let candidates = [
            ("AVX2", is_x86_feature_detected!("avx2")),
            ("FMA", is_x86_feature_detected!("fma")),
            ("F16C", is_x86_feature_detected!("f16c")),
            ("AVX-512F", is_x86_feature_detected!("avx512f")),
            ("AVX512-VNNI", is_x86_feature_detected!("avx512vnni")),
            ("AVX512-BF16", is_x86_feature_detected!("avx512bf16")),
        ];
        found.extend(candidates.iter().filter(|(_, has)| *has).map(|(name, _)| *name));
    }
    #[cfg(target_arch = "aarch64")]
    found.push("NEON");
    found
}

/// Version of the FFmpeg libraries in this build; `None` in builds without the feature `video`.
pub fn ffmpeg_version() -> Option<String> {
    #[cfg(feature = "video")]
    {
        let version = ffmpeg_next::codec::version();
        let [major, minor, micro] = [version >> 16, version >> 8 & 0xff, version & 0xff];
        Some(format!("libavcodec {major}.{minor}.{micro}"))
    }
    #[cfg(not(feature = "video"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_parse() {
        assert_eq!("cpu".parse::<DeviceName>().unwrap(), DeviceName::Cpu);
        assert_eq!("cuda:2".parse::<DeviceName>().unwrap(), DeviceName::Cuda(2));
        for bad in ["", "gpu", "cuda:x", "cpu:1", "cuda:"] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
        }
    }
}

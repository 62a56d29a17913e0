//! MM-Diffusion (Ruan et al., CVPR 2023): joint diffusion of sound and picture.

pub mod pair;

pub use pair::{Denoiser, Pair};

//! MM-Diffusion (Ruan et al., CVPR 2023): joint diffusion of sound and picture.

pub mod bench;
pub mod clip;
pub mod conditioning;
pub mod config;
pub mod cost;
pub mod demo_data;
pub mod diffusion;
pub mod evaluation;
pub mod gallery;
pub mod generate;
pub mod layers;
pub mod model_file;
pub mod network;
pub mod pair;
pub mod published;
pub mod samplers;
pub mod segment;
pub mod state;
pub mod super_resolution;
pub mod time_embedding;
pub mod training;
pub mod unet;

pub use clip::{Clip, ClipFormat, Rates};
pub use config::{DiffusionFlags, SuperResolutionConfig, UnetConfig};
pub use diffusion::{Diffusion, DiffusionConfig, Spacing};
pub use model_file::{ModelCard, ModelFile};
pub use network::{Network, NetworkConfig};
pub use pair::{Denoiser, Pair};
pub use samplers::Sampler;
pub use state::State;
pub use super_resolution::SuperResolutionUnet;
pub use unet::{CoupledDenoiser, CoupledUnet, Shifts};

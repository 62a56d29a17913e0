//! The layers that models use, and the weights that they are made of.

mod weights;

pub use weights::{Init, Parameter, Weights};

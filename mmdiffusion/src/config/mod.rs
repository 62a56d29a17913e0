//! The settings of the published models, under their published names.

mod coupled;
mod diffusion;
mod flags;
mod super_resolution;

pub use coupled::UnetConfig;
pub use diffusion::DiffusionFlags;
pub use flags::{Flags, parse_flags};
pub use super_resolution::SuperResolutionConfig;

/// Groups of the group norms, by which all numbers of channels must be divisible.
pub(crate) const NORM_GROUPS: usize = 32;

/// Most levels of a network.
const MAX_LEVELS: usize = 16;

/// Channels of each level: `num_channels` times the factors `given`, or else those that `known` has for
/// pictures of `size`.
///
/// # Errors
/// What is wrong, in words.
fn level_channels(
    num_channels: usize,
    given: &[usize],
    (name, size): (&str, usize),
    known: &[(usize, &[f64])],
) -> Result<Vec<usize>, String> {
    let factors: Vec<f64> = if given.is_empty() {
        let found = known.iter().find(|(of, _)| *of == size).map(|(_, factors)| factors.to_vec());
        found.ok_or_else(|| {
            let sizes: Vec<String> = known.iter().map(|(of, _)| of.to_string()).collect();
            format!(
                "no channel_mult is known for a {name} of {size}, only for {}; give one such as \
                 1,2,3,4",
                sizes.join(", ")
            )
        })?
    } else {
        given.iter().map(|factor| *factor as f64).collect()
    };
    if factors.len() > MAX_LEVELS {
        return Err(format!("channel_mult has {} levels, at most {MAX_LEVELS}", factors.len()));
    }
    let channels = factors.into_iter().map(|factor| (factor * num_channels as f64) as usize);
    let channels: Vec<usize> = channels.collect();
    match channels.iter().find(|count| **count == 0 || !count.is_multiple_of(NORM_GROUPS)) {
        Some(count) => Err(format!(
            "a level has {count} channels, expected a multiple of {NORM_GROUPS} (channel_mult \
             times num_channels {num_channels})"
        )),
        None => Ok(channels),
    }
}

//! Batch-norm statistics for a network that was cut out of a supernet.

use candle_core::Tensor;
use shared::{Error, Result};

use crate::subnet::Subnet;

/// Feeds `batches` of features `[B, features, T]` through `network`, so that its running
/// statistics follow what it now sees, and returns how many there were. The old statistics fade by
/// 0.9 a batch: 50 batches leave half a percent of them.
///
/// # Errors
/// Those of `batches` and of [`Subnet::forward`]; when there is no batch.
pub fn recalibrate(
    network: &Subnet,
    batches: impl IntoIterator<Item = Result<Tensor>>,
) -> Result<usize> {
    let mut count = 0;
    for batch in batches {
        network.forward(&batch?, true)?;
        count += 1;
    }
    if count == 0 {
        return Err(Error::Argument("recalibration needs at least one batch".into()));
    }
    Ok(count)
}

//! Differentiable operations that candle lacks, computes wrongly or computes slowly.

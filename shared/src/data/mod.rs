//! Manifests, loading in the background, length buckets and augmentation of recordings.

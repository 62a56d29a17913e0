//! Scores of models: verification metrics.

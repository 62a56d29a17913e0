//! What people read: progress, numbers with units, tables, plots and HTML pages.

pub mod format;
mod progress;

pub use progress::Progress;

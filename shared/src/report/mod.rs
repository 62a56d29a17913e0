//! What people look at: progress, numbers with units, tables, plots and HTML pages.

mod figures;
pub mod format;
mod html;
mod layout;
mod plot;
mod progress;
mod scale;
mod sound;
mod svg;
mod table;

pub use figures::{DetCurve, det_plot, score_histogram, training_curves};
pub use html::Page;
pub use plot::Plot;
pub use progress::Progress;
pub use scale::Axis;
pub use sound::{SoundFigure, spectrogram};
pub use table::Table;
